"""A template that writes the date: a run keeps the day of its start, and every command one day while it runs."""

import json
from datetime import datetime
from pathlib import Path

import pytest

from cagsr.io import template_date
from cagsr.training.step import Step

TEMPLATE = (
    "{{ strftime_now('day%d') }} {% for m in messages %}{{ m['role'] }} : {{ m['content'] }} ; {% endfor %}"
    "assistant :"
)
SETTINGS = ("train.steps=4", "train.evaluate_every=1", "train.save_every=0", "reward.preset=coverage")


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture
def day(monkeypatch):
    """``day[0] = 3``: from now on it is the third of the month."""
    today = [30]

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2026, 11, today[0], 12, 0, 0)

    monkeypatch.setattr(template_date, "datetime", Clock)
    return today


@pytest.fixture
def chat(rows, variant):
    """A model whose template writes the day, and conversations to train on."""
    texts = ("city lyon", "drink tea", "city porto", "city turin", "drink milk")
    turns = [{"prompt": [{"role": "user", "content": text}], "tag": f"t{text}"} for text in texts]
    rows("held.jsonl", *turns[:2])
    return variant("llama", tokenizer_config={"chat_template": TEMPLATE}), rows("chat.jsonl", *turns)


@pytest.fixture
def chatting(train, chat):
    def run(*arguments: str):
        data = (f"data.source={chat[1]}", "data.evaluation_source=held.jsonl")
        return train(*data, *SETTINGS, *arguments, model=chat[0], task=None)

    return run


def told(directory: str) -> list[dict]:
    timed = {"seconds", "tokens_per_second", "memory"}
    return [
        {key: value for key, value in row.items() if key not in timed}
        for row in lines(f"{directory}/metrics.jsonl")
    ]


def test_a_run_that_goes_on_after_midnight_reads_the_prompts_it_began_with(chatting, day, monkeypatch):
    assert chatting("run.directory=whole").code == 0
    update, calls = Step.update, []

    def slow(step, *given):
        calls.append(1)
        found = update(step, *given)
        if len(calls) == 2:
            monkeypatch.setattr("cagsr.io.shutdown._clock", {"started": -1e9})
        return found

    monkeypatch.setattr(Step, "update", slow)
    stopped = chatting("run.directory=broken", "--max-time=1h")
    assert (stopped.code, "stopped by the time limit" in stopped.err) == (75, True)
    day[0] = 1
    again = chatting("run.directory=broken", "--resume")
    assert again.code == 0, again.err
    assert told("broken") == told("whole")
    files = [Path(name, "model", "model.safetensors").read_bytes() for name in ("whole", "broken")]
    assert files[0] == files[1]
    assert all(row["prompt"].startswith("day30 user") for row in lines("broken/candidates.jsonl"))
    about = json.loads(Path("broken/run.json").read_text())
    assert about["identity"]["date in chat templates"] == "2026-11-30T12:00:00"
    assert about["changes"] == []
    assert chatting("run.directory=later").code == 0
    assert all(row["prompt"].startswith("day01 user") for row in lines("later/candidates.jsonl"))


def test_supervised_training_keeps_its_day_too(cagsr, chat, rows, day):
    turns = [
        {"prompt": [{"role": "user", "content": city}], "completion": "tea"}
        for city in ("lyon", "porto", "turin")
    ]
    source = rows("pairs.jsonl", *turns)
    settings = [f"data.source={source}", f"model.name={chat[0]}", "sft.steps=2", "sft.batch_size=2"]
    settings += ["sft.max_reference_tokens=5"]
    assert cagsr("sft", *settings, "sft.directory=base").code == 0
    day[0] = 1
    assert (
        cagsr("sft", *settings, "sft.directory=base", "sft.steps=3", "--resume", "--accept-changes").code == 0
    )
    assert json.loads(Path("base/run.json").read_text())["changes"][0]["is"] == {"sft.steps": 3}


def test_an_evaluation_says_which_day_it_was(cagsr, chat, day):
    settings = ["data.source=chat.jsonl", "data.evaluation_source=held.jsonl", "reward.preset=coverage"]
    settings += ["sampling.max_new_tokens=7"]
    outcome = cagsr("eval", f"a={chat[0]}", *settings, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["template_date"] == "2026-11-30T12:00:00"


def test_scored_rows_hold_the_day_that_the_model_read(cagsr, chat, rows, day):
    turn = [{"role": "user", "content": "city lyon"}]
    rows("given.jsonl", {"prompt": turn, "response": "lyon"}, {"prompt": turn, "response": "tea"})
    outcome = cagsr(
        "score", "given.jsonl", f"model.name={chat[0]}", "reward.preset=coverage", "sampling.max_new_tokens=7"
    )
    assert outcome.code == 0, outcome.err
    assert [json.loads(line)["prompt"][:5] for line in outcome.out.splitlines()] == ["day30", "day30"]
