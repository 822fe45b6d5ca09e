"""Runs beside one another: what differs in their settings, what a step cost, how their rewards are spread."""

import pytest

import made_runs
from cagsr.report.curves import axes
from cagsr.report.facts import differences, run_facts
from cagsr.report.histograms import histograms
from cagsr.report.page import render
from cagsr.report.read import read_run
from cagsr.runs.turns import by_role, role_labels


def run(tmp_path, name, **changes):
    return read_run(made_runs.make_run(tmp_path / name, **changes))


def test_only_what_differs_is_listed_with_the_value_of_each_run(tmp_path):
    config = made_runs.CONFIG.replace("seed: 7", "seed: 11").replace(
        "terms: null", "terms: [{signal: focus}]"
    )
    about = {
        "id": "b",
        "started": "later",
        "git": None,
        "identity": {"torch": "2.14.0", "train.seed": 11, "data": "f00"},
    }
    first = run(
        tmp_path, "first", run={"id": "a", "git": None, "identity": {"torch": "2.13.0", "data": "f00"}}
    )
    second = run(tmp_path, "second", config=config + "run: {directory: runs/second}\n", run=about)
    assert differences([first, second]) == [
        ("reward.terms", ["", '[{"signal": "focus"}]']),
        ("train.seed", ["7", "11"]),
        ("torch", ["2.13.0", "2.14.0"]),
    ]
    assert 'id="differences"' in render([first, second])
    assert 'id="differences"' not in render([first])
    assert 'id="differences"' not in render([first, run(tmp_path, "same", run=first.about)])


def test_a_step_stands_for_the_time_and_tokens_up_to_it(tmp_path):
    rows = [
        {"step": 0, "evaluation/reward": 0.0},
        {"step": 1, "seconds": 30.0, "tokens": 700.0, "memory": 1.25},
        {"step": 3, "seconds": 90.0, "tokens": 1100.0, "memory": 2.5},
    ]
    found = run(tmp_path, "a", metrics=rows)
    assert axes(found) == {"step": [0, 1, 3], "minutes": [0, 0.5, 2], "tokens": [0, 700, 1800]}
    assert ("peak memory", "2.50 GB") in run_facts(found)
    bare = run(tmp_path, "b", metrics=[{"step": 1, "reward": 1.0}])
    assert axes(bare) == {"step": [0], "minutes": [0], "tokens": [0]}


def test_a_column_of_the_histogram_has_the_shares_of_the_rewards_of_its_steps(tmp_path):
    """Of 3 candidates at step 1 two have reward 0 and one 4; at step 2 both have 4. 16 rows from 0 to 4."""
    rewards = {1: (0.0, 0.0, 4.0), 2: (4.0, 4.0)}
    rows = [
        made_runs.candidate("a b", reward, step=step) for step, each in rewards.items() for reward in each
    ]
    (picture,) = histograms([run(tmp_path, "a", candidates=rows)])
    bottom, top = 176 - 24 - 8.75, 12.0
    assert picture["size"] == (133.0, 8.75)
    assert [cell for cell in picture["cells"] if cell[0] == 44] == [
        (44, pytest.approx(bottom, abs=0.06), 0.667),
        (44, top, 0.333),
    ]
    assert [cell for cell in picture["cells"] if cell[0] == 177] == [(177, top, 1.0)]
    assert picture["says"] == "Rewards of 5 candidates: median 0 at step 1, 4.00 at step 2; from 0 to 4.00"


def test_histograms_of_several_runs_are_on_one_scale_and_a_run_without_candidates_has_none(tmp_path):
    low, high = (
        run(tmp_path, f"r{reward}", candidates=[made_runs.candidate("a", reward, step=1)])
        for reward in (0.0, 8.0)
    )
    one, other = histograms([low, run(tmp_path, "none", candidates=[]), high])
    assert (one["run"], other["run"]) == (0, 2)
    assert one["y_ticks"] == other["y_ticks"]
    assert one["cells"][0][1] > other["cells"][0][1]
    assert histograms([run(tmp_path, "empty", candidates=[])]) == []


def test_the_names_of_roles_are_found_in_the_transcript():
    text = "<s>terse<u>which colour?<a>red"
    turns = [("system", 3, 8), ("user", 11, 24), ("assistant", 27, 30)]
    shown, _ = by_role(text, turns)
    assert [shown[start:stop] for start, stop in role_labels(turns)] == ["System", "User", "Assistant"]
    assert role_labels(turns[:1]) == []
