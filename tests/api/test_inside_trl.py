"""`AttentionReward` inside TRL's GRPOTrainer: the numbers of `score` for what was sampled, by a frozen observer."""

from types import SimpleNamespace

import peft
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from cagsr.config.schema import Term
from cagsr.data.in_memory import encode_in_memory
from cagsr.errors import InputError
from cagsr.evaluation.score import score
from cagsr.integrations.trl import AttentionReward

TEXTS = ["city lyon ; drink tea", "day monday", "concert in porto afterwards"]
LIMIT = 7
PLAIN = [{"prompt": text} for text in TEXTS]
CHAT = [{"prompt": [{"role": "user", "content": text}]} for text in TEXTS]
COVERAGE = [Term("coverage", standardise="none")]


class Recorded(AttentionReward):
    """Keeps what TRL gave it and what it said."""

    def __call__(self, prompts, completions, completion_ids=None, **given):
        rewards = super().__call__(prompts, completions, completion_ids, **given)
        self.calls = [*getattr(self, "calls", []), (prompts, completions, completion_ids, rewards)]
        return rewards


@pytest.fixture
def trainer(tmp_path):
    """``trainer(model, tokenizer, reward, rows, end, **changes)``: two steps of 2 prompts with 3 completions each.

    Completions end with ``end`` often and with no other token, and write nothing that decoding leaves out.
    """

    def made(model, tokenizer, reward, rows, end, kind=(GRPOTrainer, GRPOConfig), **changes):
        silent = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - {end}
        args = kind[1](
            output_dir=str(tmp_path / "trl"),
            use_cpu=True,
            report_to="none",
            max_steps=2,
            per_device_train_batch_size=6,
            num_generations=3,
            max_completion_length=LIMIT,
            logging_steps=1,
            learning_rate=1e-2,
            disable_tqdm=True,
            generation_kwargs={"suppress_tokens": sorted(silent), "sequence_bias": [[[end], 4.0]]},
            **changes,
        )
        rows = Dataset.from_list(rows)
        return kind[0](
            model=model, reward_funcs=reward, args=args, train_dataset=rows, processing_class=tokenizer
        )

    return made


def text_of(completion) -> str:
    return completion if isinstance(completion, str) else completion[0]["content"]


@pytest.mark.parametrize(
    ("name", "rows", "end"), [("llama", PLAIN, "</s>"), ("chat", CHAT, "<e>")], ids=["plain", "chat"]
)
def test_what_trl_trains_on_is_what_score_says_of_the_same_tokens(load, words, trainer, name, rows, end):
    model, tokenizer = load(name), words(name)
    reward = Recorded(model, tokenizer)
    end = tokenizer.convert_tokens_to_ids(end)
    running = trainer(model, tokenizer, reward, rows, end)
    running.train()
    assert len(reward.calls) == 2
    finished = []
    for step, (prompts, completions, ids, rewards) in enumerate(reward.calls):
        texts = [text_of(completion) for completion in completions]
        expected = score(load(name), tokenizer, prompts, texts, preset="coverage", max_new_tokens=LIMIT)
        assert rewards == pytest.approx(expected.reward.tolist(), abs=1e-5)
        # The observer did not move, though the policy did.
        again = reward.scores(prompts, completions, ids)
        assert again.reward.tolist() == rewards
        unfinished = again.signals[:, again.names.index("unfinished")].tolist()
        assert unfinished == [0.0 if row[-1] == end else -1.0 for row in ids]
        assert [len(row) for row, value in zip(ids, unfinished, strict=True) if value] == [LIMIT] * -int(
            sum(unfinished)
        )
        finished += [not value for value in unfinished]
        logged = running.state.log_history[step]
        assert logged["rewards/attention_coverage/mean"] == pytest.approx(sum(rewards) / 6, abs=1e-5)
        for column, signal in zip(again.signals.T, again.names, strict=True):
            assert logged[f"attention_coverage/{signal}"] == pytest.approx(column.mean().item(), abs=1e-5)
    assert {True, False} == set(finished)
    moved = (model.get_input_embeddings().weight - load(name).get_input_embeddings().weight).abs().max()
    assert moved > 1e-3


def test_prompts_are_tokenised_as_the_trainer_tokenises_them(load, words, trainer):
    model, tokenizer = load("chat"), words("chat")
    turns = [
        [{"role": "user", "content": "city lyon"}],
        [
            {"role": "system", "content": "tea"},
            {"role": "user", "content": "day"},
            {"role": "assistant", "content": "a"},
        ],
    ]
    reward = AttentionReward(model, tokenizer)
    end = tokenizer.convert_tokens_to_ids("<e>")
    running = trainer(model, tokenizer, reward, CHAT, end, chat_template_kwargs={"calm": True})
    theirs, template = reward._rendering(running)
    found = encode_in_memory(turns, theirs, template=template)
    assert [list(prompt.ids) for prompt in found] == running._tokenize_prompts(turns)[0]
    assert found[0].text.endswith("<s> assistant calm ")
    plain = encode_in_memory(TEXTS, theirs, template=template)
    assert [list(prompt.ids) for prompt in plain] == running._tokenize_prompts(TEXTS)[0]
    other = AttentionReward(model, tokenizer, chat_template_kwargs={"calm": False})
    with pytest.raises(
        InputError, match=r"chat_template_kwargs: \{'calm': False\} here, and \{'calm': True\} in the tra"
    ):
        other._rendering(running)


def test_rloo_calls_it_as_grpo_does(load, words, trainer):
    model, tokenizer = load("chat"), words("chat")
    reward, end = Recorded(model, tokenizer, reward=COVERAGE), tokenizer.convert_tokens_to_ids("<e>")
    kind = (RLOOTrainer, RLOOConfig)
    running = trainer(model, tokenizer, reward, CHAT, end, kind, chat_template_kwargs={"calm": True})
    running.train()
    for step, (prompts, completions, _, rewards) in enumerate(reward.calls):
        texts, calm = [text_of(completion) for completion in completions], {"calm": True}
        settings = {"reward": COVERAGE, "max_new_tokens": LIMIT, "chat_template_kwargs": calm}
        expected = score(load("chat"), tokenizer, prompts, texts, **settings)
        assert rewards == pytest.approx(expected.reward.tolist(), abs=1e-5)
        logged = running.state.log_history[step]["attention_reward/coverage"]
        assert logged == pytest.approx(sum(rewards) / 6, abs=1e-5)


def test_with_an_adapter_the_base_observes_and_is_not_copied(load, words, trainer):
    tokenizer = words("llama")
    config = peft.LoraConfig(r=3, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(load("llama"), config)
    reward = Recorded(model, tokenizer, reward=COVERAGE)
    running = trainer(model, tokenizer, reward, PLAIN, tokenizer.eos_token_id, save_strategy="no")
    running.train()
    for prompts, completions, ids, rewards in reward.calls:
        assert reward.scores(prompts, completions, ids).reward.tolist() == rewards
        expected = score(
            load("llama"), tokenizer, prompts, completions, reward=COVERAGE, max_new_tokens=LIMIT
        )
        assert rewards == pytest.approx(expected.reward.tolist(), abs=1e-5)
    trained = [parameter for name, parameter in model.named_parameters() if "lora_B" in name]
    assert all(parameter.abs().max() > 0 for parameter in trained)
    own = {id(parameter) for parameter in reward.observer.parameters()}
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    assert len(frozen) > 10
    assert all(id(parameter) in own for parameter in frozen)


# Without a trainer --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reward(models):
    return AttentionReward(
        models / "llama", reward=[*COVERAGE, Term("unfinished", weight=2.0, standardise="none")], batch_size=2
    )


def test_it_is_a_function_of_prompts_and_completions_and_is_called_by_a_name(models, reward):
    found = reward(prompts=TEXTS, completions=["tea", "monday", "porto"])
    expected = score(models / "llama", None, TEXTS, ["tea", "monday", "porto"], reward=reward.reward)
    assert found == pytest.approx(expected.reward.tolist(), abs=1e-6)
    assert reward.__name__ == "attention_reward"
    assert AttentionReward(models / "llama", preset="robust").__name__ == "attention_robust"


def test_tokens_are_read_as_they_were_sampled_and_not_as_their_text(reward):
    tokens = reward.observer.tokenizer
    tea, eos = tokens.convert_tokens_to_ids("tea"), tokens.eos_token_id
    texts = ["tea", "tea", "tea"]
    found = reward.scores([TEXTS[0]] * 3, texts, [[tea, eos], [tea], [tea, tokens.pad_token_id]])
    assert found.signals[:, 1].tolist() == [0.0, -1.0, -1.0]
    assert found.signals[0, 0] != found.signals[2, 0]


def test_a_text_that_a_column_says_was_cut_off_is_unfinished(reward):
    found = reward.scores([TEXTS[0]] * 3, ["tea"] * 3, finished=[True, False, None])
    assert found.signals[:, 1].tolist() == [0.0, -1.0, 0.0]
    with pytest.raises(InputError, match="columns: 'finished' must be true or false, got 'May'"):
        reward.scores([TEXTS[0]] * 3, ["tea"] * 3, finished=["May"] * 3)


def test_signals_and_values_of_every_row_are_logged(reward):
    metrics, tables = {}, {}
    reward(TEXTS[:2], ["tea", "monday"], log_metric=metrics.__setitem__, log_extra=tables.__setitem__)
    found = reward.scores(TEXTS[:2], ["tea", "monday"])
    assert tables["attention_reward/coverage"] == found.signals[:, 0].tolist()
    assert metrics["attention_reward/coverage"] == pytest.approx(found.signals[:, 0].mean().item())
    assert metrics["attention_reward/unfinished"] == 0


def test_columns_of_the_data_set_reach_signals_that_read_rows(models):
    made = AttentionReward(models / "llama", reward=[Term("reference_overlap", standardise="none")])
    found = made(TEXTS[:2], ["lyon tea", "monday"], reference=["lyon tea", "tea"], trainer_state=object())
    assert found == [1.0, 0.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"completions": ["a"]}, "completions: expected one, and one list of completion_ids, for each"),
        ({"completion_ids": [[3]]}, "completions: expected one, and one list of completion_ids, for each"),
        ({"completion_ids": [[3], []]}, r"completion_ids\[1\]: expected at least one token"),
        ({"completion_ids": [[3], [999]]}, r"completion_ids\[1\]: .* below the tokenizer's 127, got \[999\]"),
        ({"images": [None, [object()]]}, "images: images are not read"),
        ({"environments": [object()] * 2}, "environments: they write a part of each completion"),
        (
            {"completions": ["a", [{"role": "assistant", "content": "a"}, {"role": "tool", "content": "b"}]]},
            r"completions\[1\]: expected a text or one turn of the assistant",
        ),
        (
            {"completions": ["a", [{"role": "assistant"}]]},
            r"completions\[1\]: the content must be text, got NoneType",
        ),
        (
            {"prompts": [TEXTS[0], [{"role": "user", "content": ["x"]}]]},
            r"prompts\[1\]: message 1 has no text as its 'content'",
        ),
        ({"completion_ids": [[3] * 64, [3]]}, r"prompts\[0\] and its response take 69 tokens"),
    ],
)
def test_what_cannot_be_read_as_it_was_sampled_is_refused(reward, given, message):
    with pytest.raises(InputError, match=message):
        reward(**{"prompts": TEXTS[:2], "completions": ["tea", "monday"], **given})


def test_columns_without_images_are_no_images(reward):
    assert len(reward(TEXTS[:2], ["tea", "monday"], images=[None, None], image=[None, None])) == 2


class Asking:
    """As much of a trainer as `AttentionReward` looks at."""

    def __init__(self, tokenizer, **changes):
        self.processing_class, self.chat_template_kwargs, self.eos_token_ids = (
            tokenizer,
            {},
            [tokenizer.eos_token_id],
        )
        self.num_generations, self.num_generations_eval = 3, 1
        self.accelerator = SimpleNamespace(device=torch.device("cpu"))
        self.model = SimpleNamespace(training=True)
        vars(self).update(changes)

    def log_metric(self, name, value):
        pass


def test_a_split_group_is_said_once_where_a_term_compares(models, words):
    made = AttentionReward(models / "llama", reward=[Term("length", standardise="group")])
    asking = Asking(words("llama"))
    given = {"prompts": TEXTS[:1] * 4, "completions": ["tea"] * 4, "log_metric": asking.log_metric}
    with pytest.warns(
        UserWarning, match="num_generations: groups of 3 are split among processes, so that length"
    ):
        made(**given)
    made(**given)
    asking.model.training = False  # an evaluation with one completion a prompt
    AttentionReward(models / "llama", reward=[Term("length", standardise="group")])(**given)
    raw = AttentionReward(models / "llama", reward=[Term("length", standardise="none")])
    raw(TEXTS[:1] * 4, ["tea"] * 4, log_metric=Asking(words("llama")).log_metric)


def test_what_the_trainer_tells_is_followed_or_refused(models, words):
    made = AttentionReward(models / "chat")
    tokenizer = words("chat")
    made._rendering(Asking(tokenizer, eos_token_ids=[9, tokenizer.eos_token_id]))
    assert 9 in made.observer.eos_ids
    _, template = made._rendering(Asking(tokenizer, tools=[len], chat_template="{{ messages }}"))
    assert (template["tools"], template["chat_template"]) == ([len], "{{ messages }}")
    with pytest.warns(UserWarning, match="rollout_func is taken to tokenise prompts as the trainer does"):
        made._rendering(Asking(tokenizer, rollout_func=print))
    with pytest.raises(
        InputError, match="the trainer's tokenizer and the observer's give tokens other numbers"
    ):
        made._rendering(Asking(words("llama")))
    with pytest.raises(InputError, match="the trainer has a SimpleNamespace, and images are not read"):
        made._rendering(Asking(tokenizer, processing_class=SimpleNamespace()))


def test_tools_are_rendered_into_the_prompt_as_the_trainer_does(models):
    tokenizer = AutoTokenizer.from_pretrained(models / "chat")
    tokenizer.chat_template = (
        "{% if tools %}{{ tools[0]['function']['name'] }} {% endif %}" + tokenizer.chat_template
    )

    def tea(cup: int):
        """Make tea.

        Args:
            cup: Which one.
        """

    made = AttentionReward(models / "chat", tokenizer)
    theirs, template = made._rendering(Asking(tokenizer, tools=[tea]))
    (prompt,) = encode_in_memory([CHAT[0]["prompt"]], theirs, template=template)
    assert prompt.text.startswith("tea <s> user city lyon")
    assert [prompt.text[slice(*span)] for span in prompt.content] == [TEXTS[0]]
