"""`cagsr score`: rows read as the config says, in passes of bounded size, and nothing overwritten."""

import json
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

import tiny
from cagsr.config import Config
from cagsr.errors import InputError
from cagsr.evaluation.score_file import score_file
from cagsr.models.load import save_model
from cagsr.models.policy import Policy

ROWS = [
    {"text": "city lyon", "response": "comes to lyon"},
    {"text": "day monday tea porto", "response": "falls on monday"},
    {"text": "city lyon", "response": "lyon"},
    {"text": "drink tea", "response": 3},
    {"text": "drink tea", "response": "tea"},
    {"text": "city lyon", "response": "tea comes to lyon"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "llama"
    save_model(tiny.policy("llama"), path)
    return path


@pytest.fixture
def run(tmp_path, model):
    """``run("key=value", rows=...)``: what is scored, and what is said of it."""
    source = tmp_path / "pairs.jsonl"

    def scored(*overrides, rows=ROWS, **options):
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = [f"data.source={source}", f"model.name={model}", "data.prompt_column=text"]
        settings += ["sampling.max_new_tokens=9", "data.reference_column=human"]
        console = Console(file=StringIO(), width=200)
        found = score_file(Config.load(None, [*settings, *overrides]), str(source), console, **options)
        return found, console.file.getvalue()

    return scored


VALID = [row for row in ROWS if row["response"] != 3]


def test_columns_are_those_of_the_config_and_a_reference_may_be_absent(run):
    found, said = run(rows=VALID)
    assert [(row["prompt"], row["response"]) for row in found] == [
        (row["text"], row["response"]) for row in VALID
    ]
    # One prompt as the model reads it, and nothing else.
    assert [line.split(":")[0].split(",")[0].lstrip("0123456789 ") for line in said.splitlines()] == [
        "the prompt of row 1 as the model reads it",
        "tokens",
        "to be covered",
        "a response ends with </s> (1)",
    ]


def test_a_row_without_a_response_is_refused_or_dropped_and_the_others_keep_theirs(run, tmp_path):
    with pytest.raises(InputError, match=r"row 4: 'response' must be text.*--skip-invalid"):
        run()
    found, said = run("data.skip_invalid=true", save_attention=tmp_path / "att")
    assert [row["response"] for row in found] == [row["response"] for row in VALID]
    assert "5 of 6 rows used; 1 invalid dropped" in said
    assert "duplicates" not in said
    names = sorted(path.name for path in (tmp_path / "att").iterdir())
    assert names == [f"row-{number:05d}.npz" for number in (1, 2, 3, 5, 6)]
    plain, _ = run(rows=VALID)
    assert found == plain


def test_long_prompts_are_dropped_or_cut_as_the_config_says(run):
    dropped, said = run("data.max_prompt_tokens=3", "data.overlong=drop", rows=VALID)
    assert [row["response"] for row in dropped] == ["comes to lyon", "lyon", "tea", "tea comes to lyon"]
    assert "1 too long dropped" in said
    cut, said = run("data.max_prompt_tokens=3", "data.overlong=truncate_right", rows=VALID)
    assert cut[1]["prompt"].split() == ["day", "monday", "tea"]
    assert "1 truncated" in said


@pytest.mark.parametrize("rows", [1, 2, 3, 64])
def test_a_pass_holds_at_most_micro_batch_rows_and_the_result_is_the_same(run, monkeypatch, tmp_path, rows):
    whole, _ = run(rows=VALID, save_attention=tmp_path / "whole")
    seen, observe = [], Policy.observe

    def counted(self, rollout, wanted):
        seen.append(len(rollout.responses))
        return observe(self, rollout, wanted)

    monkeypatch.setattr(Policy, "observe", counted)
    settings = ["sampling.candidates=1", f"train.micro_batch={rows}", "algorithm.name=policy-gradient"]
    found, _ = run(*settings, rows=VALID, save_attention=tmp_path / "parts")
    assert sum(seen) == len(VALID)
    assert max(seen) == min(rows, 3)
    for one, other in zip(found, whole, strict=True):
        assert one["signals"] == pytest.approx(other["signals"], abs=1e-5)
        assert one["reward"] == pytest.approx(other["reward"], abs=1e-3)
    for path in (tmp_path / "whole").iterdir():
        with np.load(path) as one, np.load(tmp_path / "parts" / path.name) as other:
            assert one["A"].shape == other["A"].shape == (len(one["response_ids"]), len(one["prompt_ids"]))
            assert np.allclose(one["A"], other["A"], atol=1e-5)


def test_saved_attention_is_never_overwritten(run, tmp_path):
    run(rows=VALID[:1], save_attention=tmp_path / "att")
    before = (tmp_path / "att/row-00001.npz").read_bytes()
    with pytest.raises(InputError, match=r"holds row-\*\.npz files already; name another directory"):
        run(rows=VALID, save_attention=tmp_path / "att")
    assert [path.read_bytes() for path in (tmp_path / "att").iterdir()] == [before]


def test_a_single_response_to_a_prompt_is_said_where_a_term_compares_responses(run):
    found, said = run("reward.terms=[{signal: length, standardise: group}]", rows=VALID)
    assert [row["reward"] for row in found][1::2] == [None, None]
    assert (
        "warning: reward: 2 of 3 prompts have a single response, to which length cannot add anything" in said
    )


def test_a_response_that_ends_in_an_end_token_as_text_is_refused_by_its_row(run):
    rows = [*VALID[:2], {"text": "drink tea", "response": "tea </s>"}]
    with pytest.raises(InputError, match=r"pairs.jsonl row 3: the response ends in '</s>' as text"):
        run(rows=rows)


def test_a_row_that_says_it_was_cut_off_gets_no_end_and_is_unfinished(run):
    rows = [
        {"text": "city lyon", "response": "comes to lyon", **told}
        for told in ({}, {"finished": True}, {"finished": False}, {"truncated": "true"}, {"truncated": 0})
    ]
    terms = ["reward.terms=[{signal: length, standardise: none}, {signal: unfinished, standardise: none}]"]
    found, _ = run(*terms, rows=rows)
    assert [row["signals"] for row in found] == [
        {"length": 4.0 + value, "unfinished": value} for value in (0.0, 0.0, -1.0, -1.0, 0.0)
    ]
    with pytest.raises(InputError, match=r"row 1: 'finished' must be true or false, got 'soon'"):
        run(*terms, rows=[{**rows[0], "finished": "soon"}])
