"""The sweeps of promises 17, 19 and 20 at a small count, and that each of them can fail."""

from collections import Counter
from functools import partial
from random import Random

import pytest

import conversations
import failing_dashboards
import known_rows
import runs
import saved_models
from cagsr.data import file_formats, layouts, make_prompt
from cagsr.io.adapters import Base
from cagsr.models import load, lora_base, tokenized_model
from cagsr.types import Turn

COUNTS = {saved_models: 4, conversations: 80, known_rows: 1500, failing_dashboards: 1}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def counted(proof, count: int) -> tuple[list[str], Counter]:
    """The failures of a proof, which advanced once an item, and what it summed."""
    items, sums = [], Counter()

    def advance(**numbers):
        items.append(numbers)
        sums.update(numbers)

    failures = proof.prove(count, Random(5), advance)
    assert len(items) == count
    return failures, sums


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("proof", COUNTS, ids=lambda proof: proof.__name__)
def test_the_promise_holds_at_a_small_count(proof):
    failures, sums = counted(proof, COUNTS[proof])
    assert failures == []
    assert proof.figures(sums)


# Saved models: a seed is an item, and says what it is about ---------------------------------------------------


def found(seed: int) -> str:
    return "\n".join(saved_models.problems(seed))


@pytest.mark.filterwarnings("ignore")
def test_a_base_that_is_not_checked_is_found(monkeypatch):
    assert found(2) == ""
    monkeypatch.setattr(Base, "content", property(lambda base: None))
    assert "the base is another one: loaded onto another base" in found(2)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_whose_model_was_told_something_that_no_file_says_is_found(monkeypatch):
    assert found(5) == ""
    monkeypatch.setattr(lora_base, "_told", lambda model: None)
    assert "told, LoRA on ['q']; saved as adapter" in found(5)
    assert "logits differ by" in found(5)


@pytest.mark.filterwarnings("ignore")
def test_dropout_that_is_lost_is_found(monkeypatch):
    monkeypatch.setattr(load, "set_rates", lambda config, rates: None)
    assert "its dropout is {'attention_dropout': 0.0}, and was {'attention_dropout': 0.3}" in found(15)


# Conversations ------------------------------------------------------------------------------------------------


def careless(proof, count: int) -> str:
    return "\n".join(counted(proof, count)[0])


def test_special_tokens_that_are_read_as_control_tokens_are_found(monkeypatch):
    tokenised = make_prompt.tokenised
    monkeypatch.setattr(
        make_prompt, "tokenised", lambda *given, **how: tokenised(*given, **{**how, "as_text": False})
    )
    assert "its control tokens are" in careless(conversations, 60)


def test_a_template_that_counts_as_said_is_found(monkeypatch):
    render = make_prompt.render

    def whole(*given, **options):
        text, _ = render(*given, **options)
        return text, (Turn("user", 0, len(text)),)

    monkeypatch.setattr(make_prompt, "render", whole)
    assert "salient are" in careless(conversations, 40)


def test_variables_that_are_dropped_are_found(monkeypatch):
    monkeypatch.setattr(make_prompt, "template_options", lambda row, defaults: {})
    assert "its text is" in careless(conversations, 60)


@pytest.mark.filterwarnings("ignore")
def test_another_end_than_that_of_a_turn_is_found(monkeypatch):
    monkeypatch.setattr(tokenized_model, "turn_end", lambda tokenizer, ends: None)
    conversations._policy.cache_clear()
    said = "\n".join(problem for seed in range(6) for problem in conversations._given_again(Random(seed)))
    conversations._policy.cache_clear()
    assert "ends otherwise than a turn" in said


# Data files ---------------------------------------------------------------------------------------------------


def test_a_column_that_is_dropped_is_found(monkeypatch):
    monkeypatch.setattr(layouts, "left_out", lambda column, names: None)
    assert "was written as" in careless(known_rows, 100)


def test_a_separator_that_is_not_seen_is_found(monkeypatch):
    monkeypatch.setattr(file_formats, "_separator", lambda text, usual: usual)
    assert "a sound file is refused" in careless(known_rows, 100)


def test_a_row_that_is_left_out_is_found(monkeypatch):
    read = known_rows.read
    monkeypatch.setattr(known_rows, "read", lambda name: [row for row in read(name) if not row.problem])
    assert "rows were written and" in careless(known_rows, 100)


# Dashboards ---------------------------------------------------------------------------------------------------


def unguarded(before):
    """Called in a run before the command: what a dashboard raises is nobody's concern."""
    from contextlib import nullcontext

    from cagsr.training.dashboards import Dashboards

    assert Dashboards._optional
    setattr(Dashboards, "_optional", lambda *_: nullcontext())  # noqa: B010
    before()


def test_a_dashboard_that_stops_the_run_is_found(monkeypatch):
    start = runs.start

    def started(arguments, cwd, env=None, before=None):
        return start(arguments, cwd, env, before and partial(unguarded, before))

    monkeypatch.setattr(runs, "start", started)
    failures, _ = counted(failing_dashboards, 1)
    assert ": ended with 1" in failures[0]
