"""The cache of learnt heads: found once for a base and its prompts, not for others, and never believed when damaged."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_chosen_reward import config, telling, with_values

from cagsr.distributed.process_group import World, accelerated
from cagsr.evaluation import chosen_reward
from cagsr.evaluation.chosen_reward import choose_reward
from cagsr.models.policy import Policy

MODEL = {"model": "ab" * 32, "tokenizer and model config": "cd" * 32}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "cagsr/heads"


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """One entry for each time that a base was asked for its heads."""
    times: list[int] = []

    def counted(*given: Any, **how: Any) -> Any:
        times.append(1)
        return FOUND

    monkeypatch.setattr(chosen_reward, "find_heads", counted)
    return times


FOUND = {"follows": 0.7, "agreement": 0.3, "pieces": 23, "weights": {0: [1.0] * 5}, "all": {0: [0.3] * 5}}


def learn(
    policy: Policy | None = None, *given: str, model: Any = MODEL, count: int = 3, **sampling: Any
) -> Any:
    policy, out = policy or telling(), io.StringIO()
    chosen = config("reward.preset=attention", *given, **sampling)
    console = Console(file=out, width=400)
    prompts = with_values(policy)[:count]
    found = choose_reward(policy, chosen, prompts, World(accelerated()), console, model=model)
    return json.loads(json.dumps(found.heads)), out.getvalue(), policy


def test_a_second_run_reads_what_the_first_found_and_says_where(place, asked):
    first, said, policy = learn()
    (file,) = place.iterdir()
    assert str(file) not in said
    second, said, other = learn()
    assert (second, len(asked)) == (first, 1)
    assert f"(as in {file})" in said
    assert other.readable.heads == policy.readable.heads


@pytest.mark.parametrize(
    "change",
    [
        {"given": ("train.seed=5",)},
        {"given": ("model.dtype=bfloat16", "model.lora={}")},
        {"given": ("reward.salience.most=1",)},
        {"temperature": 0.9},
        {"max_new_tokens": 6},
        {"count": 2},
        {"model": MODEL | {"model": "ef" * 32}},
        {"model": MODEL | {"tokenizer and model config": "ef" * 32}},
    ],
)
def test_what_heads_are_a_function_of_finds_them_anew(place, asked, change):
    learn()
    given = change.pop("given", ())
    learn(None, *given, **change)
    assert len(asked) == 2
    assert len(list(place.iterdir())) == 2


def test_a_base_whose_responses_end_otherwise_is_another(place, asked):
    learn()
    policy = telling()
    policy.eos_ids = [*policy.eos_ids, 20]
    learn(policy)
    assert len(asked) == 2


def test_a_model_whose_weights_nothing_identifies_is_not_cached(place, asked):
    adapter = MODEL | {"base of the adapter": "main"}
    for model in (None, {}, {"model": None}, {"model": "main"}, adapter):
        learn(model=model)
    assert len(asked) == 5
    assert not place.exists()


def damaged(file: Path) -> dict[str, str | bytes]:
    kept = json.loads(file.read_text())
    flipped = json.loads(file.read_text())
    flipped["heads"]["follows"] += 0.5
    return {
        "torn": file.read_text()[:-20],
        "empty": "",
        "no text": b"\xff\xfe\x00",
        "no object": "[1, 2]",
        "another key": json.dumps(kept | {"key": "0" * 64}),
        "a number changed": json.dumps(flipped),
        "no heads": json.dumps(kept | {"heads": None}),
        "too deep": "[" * 100_000,
    }


@pytest.mark.parametrize(
    "fault",
    ["torn", "empty", "no text", "no object", "another key", "a number changed", "no heads", "too deep"],
)
def test_a_damaged_or_foreign_file_is_not_read_and_is_written_over(place, asked, fault):
    first, _, _ = learn()
    (file,) = place.iterdir()
    whole, broken = file.read_bytes(), damaged(file)[fault]
    file.write_bytes(broken if isinstance(broken, bytes) else broken.encode())
    again, said, _ = learn()
    assert (again, len(asked)) == (first, 2)
    assert "(as in " not in said
    assert file.read_bytes() == whole
    assert [entry.name for entry in place.iterdir()] == [file.name]


def test_a_file_of_another_key_that_lies_in_its_place_is_not_read(place, asked):
    learn()
    (file,) = place.iterdir()
    learn(temperature=0.9)
    (other,) = set(place.iterdir()) - {file}
    file.write_bytes(other.read_bytes())
    learn()
    assert len(asked) == 3


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path, monkeypatch, asked):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    first, _, _ = learn()
    assert learn()[0] == first
    assert len(asked) == 2
