"""`score` in Python: texts and conversations in, numbers out, the same as those of `cagsr score`."""

import copy
import json
import warnings
from io import StringIO

import pytest
import torch
from rich.console import Console
from transformers import BartConfig, BartForConditionalGeneration

import tiny
from cagsr.config import Config
from cagsr.config.schema import Term
from cagsr.data.in_memory import encode_in_memory
from cagsr.errors import InputError
from cagsr.evaluation.score import encode_responses, score
from cagsr.evaluation.score_file import score_file
from cagsr.models.load_policy import load_policy
from cagsr.rewards.reward import Reward
from cagsr.rewards.salience import Span

PROMPTS = ["city lyon ; drink tea", "day monday", "city lyon ; drink tea", "city lyon ; drink tea"]
RESPONSES = ["comes to lyon", "falls on monday", "serves tea afterwards", ""]
USER = [{"role": "user", "content": "city lyon"}]
LENGTH = Reward([Term("length", standardise="none")])


@pytest.mark.parametrize("preset", ["robust", "lexical"])
@pytest.mark.parametrize("name", ["t5", "llama"])
def test_it_says_what_the_command_says(tmp_path, models, load, name, preset):
    source = tmp_path / "pairs.jsonl"
    rows = [{"prompt": p, "response": r} for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [f"data.source={source}", f"model.name={models / name}", f"reward.preset={preset}"]
    config = Config.load(None, [*given, "sampling.max_new_tokens=9"])
    expected = score_file(config, str(source), Console(file=StringIO()))
    found = score(load(name), None, PROMPTS, RESPONSES, preset=preset)
    assert found.reward.tolist() == [row["reward"] for row in expected]
    assert [dict(zip(found.names, row, strict=True)) for row in found.signals.tolist()] == [
        row["signals"] for row in expected
    ]


# The last prompt has a single response.
@pytest.mark.filterwarnings("ignore:reward. 1 of 2 prompts have a single:UserWarning")
def test_lists_of_responses_are_groups_and_come_out_flat_and_in_order(models):
    policy = load_policy(models / "llama")
    reward = Reward([Term("length", weight=3.0), Term("coverage", standardise="batch")])
    flat = score(policy, None, PROMPTS, [*RESPONSES[:1], "tea", *RESPONSES[2:]], reward=reward)
    nested = score(
        policy,
        None,
        ["city lyon ; drink tea", "day monday"],
        [["comes to lyon", "serves tea afterwards", ""], ["tea"]],
        reward=reward,
    )
    assert nested.signals.tolist() == flat.signals[[0, 2, 3, 1]].tolist()
    assert nested.reward.tolist() == flat.reward[[0, 2, 3, 1]].tolist()
    # Lengths 4, 4, 1 with the end of sequence: mean 3, deviation sqrt(2).
    assert nested.weighted[:, 0].tolist() == pytest.approx([3 / 2**0.5, 3 / 2**0.5, -6 / 2**0.5, 0], abs=1e-4)
    assert nested.weighted.sum(-1).tolist() == pytest.approx(nested.reward.tolist(), abs=1e-6)
    assert nested.signals.shape == (4, 2)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_batches_change_nothing(models, batch_size):
    policy = load_policy(models / "llama")
    found = score(
        policy, None, PROMPTS, RESPONSES, reward=[Term("coverage", standardise="none")], batch_size=batch_size
    )
    whole = score(policy, None, PROMPTS, RESPONSES, reward=[Term("coverage", standardise="none")])
    assert found.reward.tolist() == pytest.approx(whole.reward.tolist(), abs=1e-6)


def test_the_model_of_the_caller_is_as_it_was(load):
    model = load("llama", attn_implementation="eager").train()
    before = copy.deepcopy(model.state_dict())
    score(model, None, PROMPTS, RESPONSES)
    assert (model.config._attn_implementation, model.training) == ("eager", True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_single_response_to_a_prompt_is_said_where_a_term_compares(models):
    policy = load_policy(models / "llama")
    with pytest.warns(
        UserWarning, match=r"1 of 2 prompts have a single response, to which coverage, surprise adds 0"
    ):
        found = score(policy, None, PROMPTS, RESPONSES, preset="coverage")
    assert found.weighted[1, :2].tolist() == [0, 0]
    assert found.signals[1, 0] > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score(policy, None, PROMPTS, RESPONSES, preset="robust")


def test_what_is_cut_is_unfinished_and_nothing_else_is(models):
    reward = [Term("unfinished", standardise="none"), Term("length", standardise="none")]
    found = score(models / "llama", None, PROMPTS, RESPONSES, reward=reward, max_new_tokens=3)
    assert found.signals[:, 0].tolist() == [-1, -1, -1, 0]
    whole = score(models / "llama", None, PROMPTS, RESPONSES, reward=reward)
    assert whole.signals[:, 0].tolist() == [0, 0, 0, 0]


def test_a_response_that_the_caller_says_was_cut_off_has_no_end(models):
    reward = [Term("unfinished", standardise="none"), Term("length", standardise="none")]
    told = score(
        models / "llama", None, ["city lyon"], [["tea", "tea"]], reward=reward, finished=[[True, False]]
    )
    assert told.signals.tolist() == [[0, 2], [-1, 1]]
    with pytest.raises(
        InputError, match="finished: 1 for 2 prompts; give one bool, or one list of bools, for each"
    ):
        score(models / "llama", None, ["lyon", "tea"], ["a", "b"], reward=reward, finished=[True])


def test_idf_counts_its_words_in_these_prompts(models):
    prompts = ["lyon tea", "lyon monday", "lyon porto"]
    reward = [Term("coverage", standardise="none")]
    policy = load_policy(models / "llama")
    alone = score(policy, None, prompts, ["a", "a", "a"], reward=reward, salience="idf")
    spans = Span(pattern=r"(tea|monday|porto)")
    assert alone.reward.tolist() == pytest.approx(
        score(policy, None, prompts, ["a", "a", "a"], reward=reward, salience=spans).reward.tolist(), abs=1e-6
    )


# Conversations ------------------------------------------------------------------------------------------------


def test_a_conversation_is_what_its_template_writes_of_it(models, words):
    chat = words("chat")
    (prompt,) = encode_in_memory([USER], chat)
    assert prompt.text == "<s> user city lyon <e>\n<s> assistant "
    assert list(prompt.ids) == chat.apply_chat_template(USER, add_generation_prompt=True)["input_ids"]
    assert [prompt.text[slice(*span)] for span in prompt.content] == ["city lyon"]
    (calm,) = encode_in_memory([USER], chat, template={"calm": True})
    assert calm.text == prompt.text + "calm "


def test_a_turn_of_the_assistant_at_the_end_goes_on(models, words):
    turns = [*USER, {"role": "assistant", "content": "comes to"}]
    (prompt,) = encode_in_memory([turns], words("chat"))
    assert prompt.text == "<s> user city lyon <e>\n<s> assistant comes to"
    assert [prompt.text[slice(*span)] for span in prompt.content] == ["city lyon"]


def test_a_response_ends_with_the_token_that_the_template_ends_turns_with(models, words):
    policy = load_policy(models / "chat")
    end, eos = (words("chat").convert_tokens_to_ids(token) for token in ("<e>", "</s>"))
    assert policy.eos_ids == [eos, end]
    prompts = encode_in_memory([USER, "city lyon"], policy.tokenizer)
    rows = encode_responses(policy, prompts, ["comes to", "comes to"])
    assert [row[-1] for row in rows] == [end, eos]
    assert rows[0][:-1] == rows[1][:-1] == words("chat")("comes to")["input_ids"]
    # What the model itself would say of its ending, computed by hand.
    found = score(policy, None, [USER], ["comes to"], reward=[Term("reference_logprob", standardise="none")])
    ids = torch.tensor([[*prompts[0].ids, *rows[0]]])
    logprobs = policy.model(ids).logits[0].log_softmax(-1)
    start = len(prompts[0].ids) - 1
    expected = sum(logprobs[start + t, token] for t, token in enumerate(rows[0])) / len(rows[0])
    assert found.reward.item() == pytest.approx(expected.item(), abs=1e-5)


def test_special_tokens_in_a_response_are_text(models):
    policy = load_policy(models / "llama")
    (row,) = policy.encode(["lyon </s> tea"])
    assert row.count(policy.eos_ids[0]) == 1
    assert row[-1] == policy.eos_ids[0]


def test_a_prompt_that_seems_rendered_already_is_said(models):
    text = "<s> user city lyon <e>\n<s> assistant "
    with pytest.warns(
        UserWarning, match=r"special tokens are spelt in 1 prompts \(first: prompts\[1\]: '<s>'\)"
    ):
        score(models / "chat", None, ["city lyon", text], ["tea", "tea"], reward=LENGTH)


@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        ("city lyon", ["tea"], r"prompts: expected a list, got str; put a single one in a list"),
        (["city lyon"], "tea", r"responses: expected a list, got str"),
        (USER, ["tea"], r"prompts: expected a list of conversations, got one"),
        ([], [], r"prompts: expected a list of texts or of conversations, with at least one"),
        (["lyon", "tea"], ["a"], r"responses: 1 for 2 prompts"),
        (["lyon"], [[]], r"responses\[0\]: expected a text or a list of texts, got \[\]"),
        (["lyon"], [3], r"responses\[0\]: expected a text or a list of texts, got 3"),
        (["lyon", " "], ["a", "b"], r"prompts\[1\]: no content tokens"),
        (["lyon", 7], ["a", "b"], r"prompts\[1\]: expected a text or a list of messages, got int"),
        ([["lyon"]], ["a"], r"prompts\[0\]: message 1 has no text as its 'role'"),
        (
            [[{"role": "user", "content": [{"type": "image"}]}]],
            ["a"],
            r"prompts\[0\]: message 1 has no text as its 'content'",
        ),
        (["lyon"], ["tea </s>"], r"responses\[0\] ends in '</s>' as text; give it without special tokens"),
        (
            ["lyon " * 61],
            ["a a a"],
            r"prompts\[0\] and its response take 65 tokens, and the model's context has 64",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:the model has a chat template:UserWarning")
def test_what_does_not_fit_together_is_named(models, prompts, responses, message):
    with pytest.raises(InputError, match=message):
        score(models / "chat", None, prompts, responses, reward=LENGTH)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "robst"}, "unknown preset 'robst'; did you mean 'robust'"),
        ({"reward": [Term("covrage")]}, "covrage"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0 is no length"),
        ({"batch_size": 0}, "batch_size: 0 is too small"),
        ({"salience": "ifd"}, "salience: 'ifd' is none by name"),
    ],
)
def test_settings_that_cannot_be_are_named(models, settings, message):
    with pytest.raises(InputError, match=message):
        score(models / "llama", None, PROMPTS, RESPONSES, **settings)


def test_a_conversation_needs_a_chat_template(models):
    with pytest.raises(
        InputError, match=r"prompts\[0\]: it is a conversation, and the tokenizer has no chat template"
    ):
        score(models / "llama", None, [USER], ["tea"], reward=LENGTH)


def test_a_response_longer_than_the_decoder_is_refused(models, load):
    words = tiny._tokenizer("encoder-decoder")
    config = BartConfig(
        vocab_size=len(words), d_model=20, encoder_layers=2, decoder_layers=2, encoder_attention_heads=5,
        decoder_attention_heads=5, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=11,
        pad_token_id=0, eos_token_id=1, bos_token_id=0, decoder_start_token_id=1, forced_eos_token_id=None,
    )  # fmt: skip
    with pytest.raises(
        InputError, match=r"responses\[0\] has 14 tokens, and the model's decoder positions for 11"
    ):
        score(BartForConditionalGeneration(config), words, ["lyon"], ["tea " * 13], reward=LENGTH)
