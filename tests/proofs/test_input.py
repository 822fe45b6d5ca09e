"""The proofs of promises 8 and 9 at a small count, and that each of them can fail."""

import time
from dataclasses import replace
from random import Random

import pytest

import fuzzed_input
import rows_accounted_for
import suggestions
from cagsr.data import data_report
from cagsr.data import prompts as data
from cagsr.data import readers as sources
from cagsr.data.readers import Row
from cagsr.errors import InputError

SEED = 5


def counted(proof, count: int) -> list[str]:
    """The failures of a proof, which advanced once an item."""
    steps: list[None] = []
    failures = proof.prove(count, Random(SEED), lambda: steps.append(None))
    assert len(steps) == min(count, proof.COUNT)
    return failures


@pytest.mark.filterwarnings("ignore")
def test_bad_input_gets_one_message_and_every_row_is_accounted_for():
    assert counted(fuzzed_input, 500) == []


@pytest.mark.filterwarnings("ignore")
def test_by_command_line_a_refusal_is_exit_2_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fuzzed_input, "BY_COMMAND_LINE", 1.0)
    assert counted(fuzzed_input, 25) == []


def careless(monkeypatch: pytest.MonkeyPatch, count: int = 150) -> str:
    failures = counted(fuzzed_input, count)
    monkeypatch.undo()
    return "\n".join(failures)


@pytest.mark.filterwarnings("ignore")
def test_an_exception_instead_of_a_message_is_found_with_its_seed(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise KeyError("slots")

    monkeypatch.setattr(fuzzed_input, "check_training", broken)
    failures = counted(fuzzed_input, 200)
    assert any("config: no plain message but KeyError in test_input.py:" in failure for failure in failures)
    seed = int(failures[0].split(":")[0].removeprefix("seed "))
    assert [f"seed {seed}: {problem}" for problem in fuzzed_input.problems(seed)] == failures[:1]
    monkeypatch.undo()
    assert fuzzed_input.problems(seed) == []


@pytest.mark.filterwarnings("ignore")
def test_a_message_without_words_is_found(monkeypatch: pytest.MonkeyPatch):
    def wordless(*_: object) -> None:
        raise InputError("")

    monkeypatch.setattr(fuzzed_input, "check_training", wordless)
    assert "config: refused without a word" in careless(monkeypatch)


@pytest.mark.filterwarnings("ignore")
def test_input_that_hangs_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fuzzed_input, "SECONDS", 0.2)
    monkeypatch.setattr(fuzzed_input, "check_paths", lambda _: time.sleep(30))
    assert "config: no answer in 0.2 s" in careless(monkeypatch, 40)


@pytest.mark.filterwarnings("ignore")
def test_a_row_that_is_lost_while_reading_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rows_accounted_for, "read", lambda *given: sources.read(*given)[:-1])
    assert "rows were written and" in careless(monkeypatch)


@pytest.mark.filterwarnings("ignore")
def test_a_row_that_is_lost_while_encoding_is_found(monkeypatch: pytest.MonkeyPatch):
    def lossy(rows, tokenizer, **options):
        return data.encode([row for row in rows if not row.problem] or rows, tokenizer, **options)

    monkeypatch.setattr(rows_accounted_for, "encode", lossy)
    assert "rows were read and" in careless(monkeypatch)


@pytest.mark.filterwarnings("ignore")
def test_text_that_is_tidied_up_is_found(monkeypatch: pytest.MonkeyPatch):
    mapped = data._mapped

    def tidy(row: Row, *given) -> Row:
        found = mapped(row, *given)
        if isinstance(prompt := found.values.get("prompt"), str):
            found = replace(found, values={**found.values, "prompt": prompt.capitalize()})
        return found

    monkeypatch.setattr(data, "_mapped", tidy)
    assert " became " in careless(monkeypatch)


@pytest.mark.filterwarnings("ignore")
def test_a_refusal_that_names_no_row_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(data, "_too_long", lambda *_: "too long")
    shortened = data_report._shortened
    monkeypatch.setattr(
        data_report, "_shortened", lambda lines: [line.partition(": ")[2] for line in shortened(lines)]
    )
    assert "names no row" in careless(monkeypatch)


@pytest.mark.filterwarnings("ignore")
def test_a_command_that_ends_with_a_traceback_or_leaves_files_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fuzzed_input, "BY_COMMAND_LINE", 1.0)

    def untidy(arguments: list[str]) -> tuple[object, str]:
        fuzzed_input.Path("run").mkdir()
        return 2, "Traceback (most recent call last):\nerror: no"

    monkeypatch.setattr(fuzzed_input, "_run", untidy)
    found = careless(monkeypatch, 6)
    assert "a traceback" in found
    assert "not one message" in found
    assert "left ['run'] behind" in found


def test_misspelt_words_get_the_right_suggestion():
    assert counted(suggestions, suggestions.COUNT) == []


@pytest.mark.parametrize("seed", range(3))
def test_the_share_of_right_suggestions_does_not_hang_on_a_seed(seed: int):
    share, _ = suggestions.measured(suggestions.COUNT, Random(seed), lambda: None)
    assert share >= suggestions.SHARE


def test_suggestions_that_are_wrong_are_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cagsr.errors.near", lambda word, choices, least=None: min(choices))
    failures = counted(suggestions, 100)
    assert len(failures) > 5
    assert all(" as '" in failure for failure in failures)
