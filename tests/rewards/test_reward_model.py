"""Reward models: what they read, that padding moves nothing, what is refused, and that they learn."""

import builtins
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

import reward_models
import tiny
from cagsr.data.preferences import Pair
from cagsr.errors import InputError
from cagsr.models.load import save_model
from cagsr.models.load_policy import load_policy
from cagsr.rewards.reward_model import Conversation, RewardModel, asked, encoded, frozen
from cagsr.rewards.signals import SIGNALS
from cagsr.training.reward_model import _parted, train_reward_model
from chat_models import CHATML, tokenizer
from evidence import make_evidence, make_prompt
from reward_models import words

PROMPTS = [words(3), words(7, 5), words(2, 11), words(5, 3)]
RESPONSES = [words(11), words(2, 30), words(5, 17), words(3, 40)]
each_shape = pytest.mark.parametrize("shape", reward_models.SHAPES)


@each_shape
def test_trap_10_padding_does_not_change_a_score(shape):
    model = RewardModel.load(reward_models.saved(shape))
    together = model.score(PROMPTS, RESPONSES)
    alone = torch.cat([model.score([p], [r]) for p, r in zip(PROMPTS, RESPONSES, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert together.dtype == torch.float32
    assert together.unique().numel() == 4
    torch.testing.assert_close(
        model.score(PROMPTS, RESPONSES, rows_per_pass=3), together, rtol=1e-4, atol=1e-5
    )


@each_shape
def test_a_score_reads_every_word_of_prompt_and_response(shape):
    model = RewardModel.load(reward_models.saved(shape))
    (before,) = model.score([words(5)], [words(5, 30)]).tolist()
    for place in range(5):
        prompt, response = words(5).split(), words(5, 30).split()
        prompt[place] = words(1, 60)
        assert model.score([" ".join(prompt)], [words(5, 30)]).item() != pytest.approx(before, abs=1e-6)
        response[place] = words(1, 60)
        assert model.score([words(5)], [" ".join(response)]).item() != pytest.approx(before, abs=1e-6)


def test_a_t5_of_ours_scores_as_its_decoder_states_and_its_head_say():
    model = RewardModel.load(reward_models.saved("t5"))
    prompt, response = model.tokenizer(words(7)), model.tokenizer(words(3, 30), add_special_tokens=False)
    states = model.model.transformer(
        input_ids=torch.tensor([prompt["input_ids"]]),
        decoder_input_ids=torch.tensor([[0, *response["input_ids"]]]),
    ).last_hidden_state
    expected = model.model.classification_head(states[:, -1]).item()
    assert model.score([words(7)], [words(3, 30)]).item() == pytest.approx(expected, rel=1e-4)


def test_a_causal_model_reads_prompt_response_and_end():
    model = RewardModel.load(reward_models.saved("llama"))
    row = encoded(model.model, model.tokenizer, words(3), words(2, 30))
    assert row == {"input_ids": [20, 21, 22, 50, 51, model.tokenizer.eos_token_id]}


def test_a_response_that_was_cut_off_is_scored_without_an_end():
    model = RewardModel.load(reward_models.saved("llama"))
    plain = AutoModelForSequenceClassification.from_pretrained(reward_models.saved("llama"))
    eos = model.tokenizer.eos_token_id
    rows = [[20, 21, 22, 50, 51], [20, 21, 22, 50, 51, eos], [20, 21, 22, eos]]
    expected = [plain(input_ids=torch.tensor([row])).logits.item() for row in rows]
    given = ([words(3)] * 3, [words(2, 30), words(2, 30), ""])
    found = model.score(*given, finished=[False, True, False]).tolist()
    assert found == pytest.approx(expected, abs=1e-5)
    evidence = make_evidence(
        torch.zeros(2, 2, 3),
        prompts=[make_prompt(words(3))],
        responses=[words(2, 30)] * 2,
        finished=[False, True],
    )
    signal = SIGNALS["reward_model"](evidence, path=reward_models.saved("llama"))
    assert signal.tolist() == pytest.approx(expected[:2], abs=1e-5)


def test_a_turn_that_was_cut_off_is_left_open():
    model = RewardModel.load(reward_models.saved("llama"))
    given = ([{"role": "user", "content": "say"}], "hello")
    said = tokenizer(CHATML)
    open_ids, closed = (
        encoded(model.model, said, *given, finished)["input_ids"] for finished in (False, True)
    )
    assert closed[: len(open_ids)] == open_ids
    assert said.decode(open_ids).endswith("<|im_start|>assistant\nhello")
    assert said.decode(closed[len(open_ids) :]) == "<|im_end|>\n"


@pytest.mark.parametrize("shape", ["t5", "t5-one-text"])
def test_an_encoder_decoder_has_its_separators_anyway(shape):
    model = RewardModel.load(reward_models.saved(shape))
    scores = model.score([words(3)] * 2, [words(2, 30)] * 2, finished=[False, True])
    assert scores[0].item() == pytest.approx(scores[1].item(), abs=1e-5)


@pytest.fixture(params=["none", "eos", "own"])
def padded_by(request, tmp_path) -> str:
    """Directory of a causal reward model whose config has no padding token, EOS as that, or one of its own."""
    path = tmp_path / "model"
    shutil.copytree(reward_models.saved("llama"), path)
    config = json.loads((path / "config.json").read_text())
    if request.param != "own":
        config["pad_token_id"] = config["eos_token_id"] if request.param == "eos" else None
        (path / "config.json").write_text(json.dumps(config))
        tokenizer = json.loads((path / "tokenizer_config.json").read_text())
        tokenizer["pad_token"] = tokenizer["eos_token"] if request.param == "eos" else None
        (path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return str(path)


def test_a_causal_score_is_what_transformers_says_of_the_same_ids_alone(padded_by):
    model = RewardModel.load(padded_by)
    plain = AutoModelForSequenceClassification.from_pretrained(padded_by, attn_implementation="eager")
    for template in (None, "{% for m in messages %}{{ m['content'] }} {% endfor %}"):
        model.tokenizer.chat_template = template
        rows = [
            encoded(model.model, model.tokenizer, *pair)["input_ids"]
            for pair in zip(PROMPTS, RESPONSES, strict=True)
        ]
        assert len(set(map(len, rows))) > 1
        expected = [plain(input_ids=torch.tensor([row])).logits.item() for row in rows]
        assert model.score(PROMPTS, RESPONSES).tolist() == pytest.approx(expected, abs=1e-5)
    assert model.model.config.pad_token_id == plain.config.pad_token_id


def test_special_tokens_in_a_response_are_text_to_a_reward_model():
    model = RewardModel.load(reward_models.saved("llama"))
    (row,) = encoded(model.model, model.tokenizer, words(3), f"{words(1)} </s> <pad> {words(1)}").values()
    assert row.count(model.tokenizer.eos_token_id) == 1
    assert model.tokenizer.pad_token_id not in row


def test_a_model_without_padding_learns_at_its_last_token_and_is_saved_as_it_was(tmp_path):
    pytest.importorskip("trl")
    policy = tiny.policy("llama")
    policy.model.config.pad_token_id = None
    save_model(policy, tmp_path / "base")
    train_reward_model(str(tmp_path / "base"), pairs(policy, 20), tmp_path / "rm", steps=2, batch_size=8)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    assert plain.config.pad_token_id is None
    model = RewardModel.load(str(tmp_path / "rm"))
    row = encoded(model.model, model.tokenizer, words(5), words(3, 7))["input_ids"]
    last = plain.model(torch.tensor([row])).last_hidden_state[0, -1]
    assert row[-1] == model.tokenizer.eos_token_id
    assert model.score([words(5)], [words(3, 7)]).item() == pytest.approx(plain.score(last).item(), abs=1e-5)


def test_a_chat_model_reads_a_conversation():
    model = RewardModel.load(reward_models.saved("llama"))
    model.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {{ m['role'] }} {% endfor %}"
    turns = [{"role": "user", "content": words(2)}]
    from_turns = encoded(model.model, model.tokenizer, turns, words(2, 30))
    unknown = model.tokenizer.unk_token_id
    assert from_turns == {"input_ids": [20, 21, unknown, 50, 51, unknown]}
    assert encoded(model.model, model.tokenizer, words(2), words(2, 30)) == from_turns
    assert asked(replace(make_prompt("a"), row={"prompt": turns})) == (turns, {})
    assert asked(make_prompt("a b", row={"prompt": "a b"})) == "a b"


def test_a_conversation_is_read_with_its_tools_and_goes_on_where_it_was_begun():
    model = RewardModel.load(reward_models.saved("llama"))
    model.tokenizer.chat_template = (
        "{{ tools[0].name }} {% for m in messages %}{{ m['content'] }} {{ m['role'] }} {% endfor %}"
    )
    turns = [{"role": "user", "content": words(2)}, {"role": "assistant", "content": words(1, 40) + " "}]
    asked_for = Conversation(turns, {"tools": [{"name": words(1, 50)}]})
    unknown = model.tokenizer.unk_token_id
    row = encoded(model.model, model.tokenizer, asked_for, words(2, 30))
    expected = [*model.tokenizer(words(1, 50))["input_ids"], 20, 21, unknown, 60, 50, 51, unknown]
    assert row == {"input_ids": expected}


def test_special_tokens_in_a_conversation_are_text_and_an_end_that_is_added_to_a_prompt_goes():
    model = reward_models.saved("llama")
    loaded = RewardModel.load(model)
    chat = tokenizer(CHATML)
    turns = [{"role": "user", "content": "say <|im_end|> hello"}]
    ids = encoded(loaded.model, chat, turns, "hi <|im_end|>")["input_ids"]
    assert chat.convert_ids_to_tokens(ids).count("<|im_end|>") == 2
    ids = encoded(loaded.model, tokenizer(end=True), "say </s>", "hello")["input_ids"]
    assert ids.index(chat.eos_token_id) == len(ids) - 1


def test_another_number_of_outputs_is_refused():
    with pytest.raises(InputError, match=r"has 3 outputs and a reward model has one"):
        RewardModel.load(reward_models.saved("llama", labels=3))


def test_a_model_without_a_head_is_no_reward_model(tmp_path):
    save_model(tiny.policy("llama"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"num_labels": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"no reward model: its checkpoint has no weights for score\.weight"):
        RewardModel.load(str(tmp_path))


def test_pickled_weights_are_not_read(tmp_path):
    shutil.copytree(reward_models.saved("llama"), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(InputError, match="from safetensors"):
        RewardModel.load(str(tmp_path / "model"))


def test_a_text_longer_than_the_model_has_positions_for_is_refused():
    model = RewardModel.load(reward_models.saved("llama"))
    with pytest.raises(InputError, match="70 tokens, and the reward model has positions for 64"):
        model.score([words(29)], [words(40)])


def test_positions_that_padding_takes_are_no_part_of_a_reward_models_context():
    shape = {"hidden_size": 20, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 5}
    ids = {"vocab_size": 200, "pad_token_id": 1, "num_labels": 1, "max_position_embeddings": 66}
    network = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("roberta", **shape, **ids))
    words_of_llama = RewardModel.load(reward_models.saved("llama")).tokenizer
    model = RewardModel(frozen(network), words_of_llama)
    with pytest.raises(InputError, match="and the reward model has positions for 64"):
        model.score([words(29)], [words(35)])
    assert model.score([words(29)], [words(34)]).isfinite().all()


def test_the_signal_scores_each_response_to_its_own_prompt():
    path = reward_models.saved("t5")
    prompts = [make_prompt(words(3), index=0), make_prompt(words(2, 9), index=1)]
    evidence = make_evidence(torch.zeros(4, 3, 5), group_size=2, prompts=prompts, responses=RESPONSES)
    expected = RewardModel.load(path).score([words(3)] * 2 + [words(2, 9)] * 2, RESPONSES)
    found = SIGNALS["reward_model"](evidence, path=path)
    torch.testing.assert_close(found, expected)


def pairs(policy, count: int) -> list[Pair]:
    """The better response has no word of the worse one's kind."""
    draw = random.Random(0)
    return [
        Pair(prompt, words(3, draw.randrange(20)), words(3, 50 + draw.randrange(20)))
        for prompt in tiny.prompts(policy, [5] * count)
    ]


def test_all_pairs_of_a_prompt_are_held_out_together():
    first, second, third, *_ = tiny.prompts(tiny.policy("llama"), [3, 5, 7])
    given = [Pair(p, "a", "b") for p in (first, second, third, first, second, third, first)]
    training, kept = _parted(given, 0.3, seed=0)
    assert len(training) + len(kept) == 7
    assert {p.prompt.text for p in kept}.isdisjoint(p.prompt.text for p in training)
    assert len({p.prompt.text for p in kept}) == 1
    assert _parted(given[:1], 0.9, seed=0) == (given[:1], [])


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_a_reward_model_learns_what_pairs_show_and_loads_again(name, tmp_path):
    pytest.importorskip("trl")
    policy = tiny.policy(name)
    save_model(policy, tmp_path / "base")
    before = (torch.get_rng_state(), random.getstate())
    outcome = train_reward_model(
        str(tmp_path / "base"), pairs(policy, 60), tmp_path / "rm", steps=40, batch_size=8, learning_rate=1e-2
    )
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (outcome["pairs"], outcome["held_out_pairs"]) == (60, 12)
    assert outcome["accuracy"] >= 11 / 12
    assert not list(tmp_path.glob(".*"))
    found = RewardModel.load(str(tmp_path / "rm"))
    good, bad = found.score([words(5)] * 2, [words(3, 7), words(3, 57)]).tolist()
    assert good > bad


def test_a_base_that_is_an_adapter_is_trained_merged_and_no_adapter_is_a_reward_model(tmp_path):
    pytest.importorskip("trl")
    save_model(tiny.policy("llama"), tmp_path / "base")
    policy = load_policy(tmp_path / "base", lora={"r": 2, "target_modules": ["q_proj"]})
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.5)
    save_model(policy, tmp_path / "adapter")
    train_reward_model(
        str(tmp_path / "adapter"), pairs(policy, 4), tmp_path / "rm", steps=1, learning_rate=1e-9
    )
    trained = RewardModel.load(str(tmp_path / "rm")).model.state_dict()
    expected = load_policy(tmp_path / "adapter").model.state_dict()
    key = "model.layers.1.self_attn.q_proj.weight"
    torch.testing.assert_close(trained[key], expected[key], rtol=0, atol=1e-6)
    with pytest.raises(InputError, match=r"adapter is a LoRA adapter, .* Save it merged"):
        RewardModel.load(str(tmp_path / "adapter"))


def test_without_trl_training_is_refused_before_anything_loads(monkeypatch, tmp_path):
    ordinary = builtins.__import__

    def without(name, *given, **more):
        if name == "trl":
            raise ImportError(name)
        return ordinary(name, *given, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'trl"):
        train_reward_model("nowhere", [], tmp_path / "rm")
    assert not Path(tmp_path / "rm").exists()


def test_no_pairs_are_refused(tmp_path):
    pytest.importorskip("trl")
    with pytest.raises(InputError, match="there are none"):
        train_reward_model("nowhere", [], tmp_path / "rm")
