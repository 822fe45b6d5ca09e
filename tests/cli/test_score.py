"""`cagsr score`: rows in, signals and reward out; and attention that another tool can check."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from cagsr.models.from_scratch import new_model
from chat_models import CHATML, tokenizer

PAIRS = [
    {"prompt": "city lyon ; drink tea", "response": "comes to lyon"},
    {"prompt": "day monday", "response": "falls on monday"},
    {"prompt": "city lyon ; drink tea", "response": "serves tea afterwards"},
    {"prompt": "city lyon ; drink tea", "response": ""},
]


@pytest.fixture
def score(cagsr, models, rows):
    def run(*arguments, model="t5", pairs=PAIRS):
        limit = "sampling.max_new_tokens=9"
        return cagsr("score", rows("pairs.jsonl", *pairs), f"model.name={models / model}", limit, *arguments)

    return run


def scored(outcome):
    assert outcome.code == 0, outcome.err
    return [json.loads(line) for line in outcome.out.splitlines()]


@pytest.mark.parametrize("model", ["t5", "llama"])
def test_one_row_out_for_each_row_in_and_in_order(score, model):
    terms = (
        "reward.terms=[{signal: coverage, weight: 3.0, standardise: none}, "
        "{signal: unfinished, weight: 0.5, standardise: none}]"
    )
    outcome = score(terms, model=model)
    found = scored(outcome)
    first, *rest = outcome.err.split("\n  ")
    assert first == f"the prompt of row 1 as the model reads it: {PAIRS[0]['prompt']!r}"
    assert [line.split(":")[0].split(",")[0] for line in rest][1] == "to be covered"
    assert [{key: row[key] for key in ("prompt", "response")} for row in found] == PAIRS
    for row in found:
        signals = row["signals"]
        assert set(signals) == {"coverage", "unfinished"}
        assert row["reward"] == pytest.approx(3 * signals["coverage"] + 0.5 * signals["unfinished"], abs=1e-5)
    assert found[0]["signals"]["coverage"] > 0
    assert found[3]["signals"]["coverage"] == 0.0


def test_conversations_are_rendered_with_what_the_config_and_the_row_say(score, models):
    chat = tokenizer(CHATML + "{% if mood is defined %}{{ mood }}{{ tools[0].name if tools }}{% endif %}")
    chat.save_pretrained(models / "talking")
    new_model("llama", chat, layers=1, hidden=16, heads=2, context=256).save_pretrained(models / "talking")
    asked = [{"role": "user", "content": "say hello"}]
    begun = [*asked, {"role": "assistant", "content": "hello <|im_end|>"}]
    rows = [
        {"prompt": asked},
        {"prompt": asked, "chat_template_kwargs": {"mood": "glad"}, "tools": [{"name": "!"}]},
        {"prompt": begun},
    ]
    settings = ("reward.preset=lexical", "data.chat_template_kwargs={mood: calm}")
    outcome = score(*settings, model="talking", pairs=[row | {"response": "hello"} for row in rows])
    prompts = [
        row["prompt"].removeprefix("<|im_start|>user\nsay hello<|im_end|>\n") for row in scored(outcome)
    ]
    start = "<|im_start|>assistant\n"
    assert prompts == [f"{start}calm", f"{start}glad!", f"{start}hello <|im_end|>"]
    assert "1 prompts end in a turn of the assistant, which the response continues" in " ".join(
        outcome.err.split()
    )


def test_a_response_that_is_cut_is_said_and_where_to_raise_the_limit(score):
    long = {"prompt": "day monday", "response": "tea " * 12}
    outcome = score("reward.preset=lexical", pairs=[*PAIRS, long])
    assert len(scored(outcome)) == 5
    said = " ".join(outcome.err.split())
    assert (
        "warning: 1 of 5 responses are longer than sampling.max_new_tokens (9) and are cut there; raise it"
        in said
    )


def test_rows_of_one_prompt_are_a_group_wherever_they_stand(score):
    found = scored(score("reward.terms=[{signal: length, standardise: group}]"))
    # Lengths 4, 4, 4, 1 with the end of sequence; the group of rows 1, 3, 4 has mean 3 and deviation sqrt(2).
    lengths = [row["signals"]["length"] for row in found]
    group = np.array([lengths[0], lengths[2], lengths[3]])
    expected = (group - group.mean()) / group.std()
    assert lengths[3] < lengths[0]
    assert [found[i]["reward"] for i in (0, 2, 3)] == pytest.approx(expected.tolist(), abs=1e-4)
    assert found[1]["reward"] is None


def test_batch_means_all_rows(score):
    found = scored(score("reward.terms=[{signal: length, standardise: batch}]"))
    lengths = np.array([row["signals"]["length"] for row in found])
    expected = (lengths - lengths.mean()) / lengths.std()
    assert [row["reward"] for row in found] == pytest.approx(expected.tolist(), abs=1e-4)


def test_salience_counts_its_words_in_the_prompts_scored(score):
    found = scored(
        score("reward.salience={kind: idf}", "reward.terms=[{signal: coverage, standardise: none}]")
    )
    assert found[0]["signals"]["coverage"] > 0


@pytest.mark.parametrize(
    ("model", "layers"), [("t5", "all"), ("t5", "[1]"), ("llama", "all"), ("llama", "[0]")]
)
def test_saved_attention_is_that_of_eager_transformers(score, models, model, layers):
    scored(score("--save-attention", "att", f"reward.layers={layers}", model=model))
    files = sorted(Path("att").iterdir())
    assert [file.name for file in files] == [f"row-{number:05d}.npz" for number in (1, 2, 3, 4)]
    loader = AutoModelForSeq2SeqLM if model == "t5" else AutoModelForCausalLM
    eager = loader.from_pretrained(models / model, attn_implementation="eager").eval()
    words = AutoTokenizer.from_pretrained(models / model)
    chosen = [0, 1] if layers == "all" else json.loads(layers)
    for file, pair in zip(files, PAIRS, strict=True):
        with np.load(file, allow_pickle=False) as saved:
            found = dict(saved)
        prompt = words(pair["prompt"])["input_ids"]
        response = [*words(pair["response"], add_special_tokens=False)["input_ids"], words.eos_token_id]
        assert found["prompt_ids"].tolist() == prompt
        assert found["response_ids"].tolist() == response
        assert found["layers"].tolist() == chosen
        assert found["A"].dtype == np.float32
        with torch.no_grad():
            if model == "t5":
                inputs = torch.tensor([[eager.config.decoder_start_token_id, *response[:-1]]])
                weights = eager(
                    input_ids=torch.tensor([prompt]), decoder_input_ids=inputs, output_attentions=True
                ).cross_attentions
                expected = torch.stack([weights[layer][0].mean(0) for layer in chosen]).mean(0)
            else:
                weights = eager(torch.tensor([prompt + response]), output_attentions=True).attentions
                full = torch.stack([weights[layer][0].mean(0) for layer in chosen]).mean(0)
                start = len(prompt) - 1
                expected = full[start : start + len(response), : len(prompt)]
        assert found["A"].shape == (len(response), len(prompt))
        assert np.abs(found["A"] - expected.numpy()).max() < 1e-5


def test_a_file_may_be_written_and_the_config_of_a_run_may_be_used(score, models):
    Path("mine.yaml").write_text("data: {task: slots}\nreward: {preset: lexical}\n")
    outcome = score("--config", "mine.yaml", "--output", "scores.jsonl")
    assert (outcome.code, outcome.out) == (0, "")
    found = [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]
    assert [row["response"] for row in found] == [pair["response"] for pair in PAIRS]
    assert set(found[0]["signals"]) == {"lexical_overlap", "repetition"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "day monday"},
            "pairs.jsonl row 2: 'response' must be text; this row's columns: 'prompt'.",
        ),
        ({"prompt": "day monday", "response": 3}, "pairs.jsonl row 2: 'response' must be text"),
        ("{bad", "pairs.jsonl row 2: invalid JSON at column 2"),
        ({"prompt": "", "response": "x"}, "pairs.jsonl row 2: prompt is empty"),
        (
            {"prompt": "day " * 60, "response": "x"},
            "pairs.jsonl row 2: 60 prompt + 7 new tokens > 64 context. Set data.max_prompt_tokens",
        ),
    ],
)
def test_a_row_that_cannot_be_scored_is_named(score, row, message):
    outcome = score("sampling.max_new_tokens=7", model="llama", pairs=[PAIRS[0], row])
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"error: {message}")


def test_save_attention_into_a_file_is_refused(score):
    Path("att").write_text("mine")
    outcome = score("--save-attention", "att")
    assert (outcome.code, outcome.err) == (2, "error: --save-attention: att is a file; name a directory\n")
    assert Path("att").read_text() == "mine"
