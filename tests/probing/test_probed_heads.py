"""Learnt heads in a probe: by layer, what follows from them, which reward they name, and what is shown."""

import io
from typing import Any

import pytest
from rich.console import Console

import made_runs
from cagsr.config import Config
from cagsr.probing.heads import favoured, heads_as_data
from cagsr.probing.run import _yaml
from cagsr.probing.table import _base_lines, _layers


def test_heads_are_told_by_layer_with_what_follows():
    assert heads_as_data(made_runs.HEADS) == {
        "follows": 0.782,
        "undecided": 0.27,
        "agreement": 0.325,
        "pieces": 23,
        "preset": "attention",
        "decision": "attention serves: read heads (reward.preset: attention)",
        "layers": [
            {"layer": 0, "agreement": 0.05, "read": 0, "heads": 2},
            {"layer": 2, "agreement": 0.1, "read": 1, "heads": 2},
            {"layer": 7, "agreement": -0.125, "read": 1, "heads": 2},
        ],
    }


@pytest.mark.parametrize(
    "found", [None, {"weights": {"7": [1.0, 0.0]}}, made_runs.HEADS | {"all": {"7": []}}]
)
def test_heads_that_were_not_learnt_are_none(found):
    assert heads_as_data(found) is None


@pytest.mark.parametrize(
    ("follows", "configured", "expected"),
    [
        (0.65, "knockout", "attention"),
        (0.65, "attention", "attention"),
        (0.64, "attention", "knockout"),
        (0.64, "robust", "robust"),
        (0.64, "coverage", "coverage"),
        (0.9, "reward.terms", "reward.terms"),
        (None, "attention", "attention"),
    ],
)
def test_between_attention_and_knockout_the_heads_decide_and_other_rewards_stay(
    follows, configured, expected
):
    assert favoured(heads_as_data(made_runs.HEADS | {"follows": follows}), configured) == expected


def test_without_heads_the_configured_reward_stays():
    assert favoured(None, "robust") == "robust"


def shown(heads: Any) -> str:
    out = io.StringIO()
    _layers(heads, Console(file=out, width=80, color_system=None))
    return out.getvalue()


def test_the_table_of_layers_ends_with_the_decision():
    heads = heads_as_data(made_runs.HEADS)
    assert heads is not None
    assert shown(heads).splitlines() == [
        "",
        " layer  agree  read",
        "───────────────────",
        "     0   +.05     0",
        "     2   +.10     1",
        "     7   -.12     1",
        "  agree: mean rank correlation of a layer's heads with the knockouts, within a",
        "    piece (23 pieces); read: how many of its heads are. 2 of 6 heads are read.",
        "  heads follow the knockouts +.78 (at least .65): attention serves: read heads",
        "    (reward.preset: attention)",
    ]


@pytest.mark.parametrize(
    ("follows", "said"),
    [
        (0.3, "heads follow the knockouts +.30 (below .65): ask for knockouts (reward.preset: knockout)"),
        (None, "heads follow the knockouts: not known (these heads were learnt before it was measured)"),
    ],
)
def test_heads_that_do_not_serve_and_heads_of_before_say_so(follows, said):
    assert said in " ".join(shown(heads_as_data(made_runs.HEADS | {"follows": follows})).split())


def test_many_layers_stand_beside_one_another_and_none_is_lost():
    heads = heads_as_data(made_runs.HEADS | {"all": {layer: [0.5] for layer in range(33)}, "weights": {}})
    rows = [line.split() for line in shown(heads).splitlines()[3:12]]
    # Four blocks of nine; the last has six.
    assert rows[0] == ["0", "+.50", "0", "9", "+.50", "0", "18", "+.50", "0", "27", "+.50", "0"]
    assert [row[::3] for row in rows[5:]] == [
        ["5", "14", "23", "32"],
        ["6", "15", "24"],
        ["7", "16", "25"],
        ["8", "17", "26"],
    ]
    assert max(map(len, shown(heads).splitlines())) <= 80


def test_without_learnt_heads_a_line_says_how_to_have_them():
    base = {"headroom": None, "empty": 0.0, "unfinished": 0.0, "repeated": 0.0, "alike": 0.0, "unread": 0.0}
    summary = {
        "base": base | {"entropy": 1.0},
        "missing": {},
        "configured": "coverage",
        "measured": "coverage",
    }
    line = "heads: none learnt; with reward.preset=robust a probe says whether attention serves"
    assert list(_base_lines(summary | {"heads": None}))[-1] == line
    assert line not in list(_base_lines(summary | {"heads": heads_as_data(made_runs.HEADS)}))
    chosen = {"heads": None, "configured": "robust", "measured": "knockout"}
    line = "heads: nothing told them apart, so that robust is knockout here"
    assert list(_base_lines(summary | chosen))[-1] == line


@pytest.mark.parametrize(
    ("given", "chosen", "reward"),
    [
        (["reward.preset=knockout"], "robust", "  preset: robust\n"),
        (["reward.preset=attention-values"], "robust", "  preset: robust\n"),
        (
            ["reward.preset=attention", "reward.salience.kind=idf"],
            "robust",
            "  preset: robust\n  salience: {kind: idf}\n",
        ),
        (["reward.preset=attention"], "attention", "  preset: attention\n"),
        # Measured with pieces: without the line the preset would have words. It reads no heads.
        (["reward.preset=attention"], "knockout", "  preset: knockout\n  salience: {kind: pieces}\n"),
        (
            ["reward.preset=attention"],
            "coverage",
            "  preset: coverage\n  heads: learn\n  salience: {kind: pieces}\n",
        ),
        (
            ["reward.preset=coverage"],
            "attention",
            "  preset: attention\n  heads: all\n  salience: {kind: uniform}\n",
        ),
        (
            ["reward.preset=coverage", "reward.heads=learn", "reward.salience.kind=pieces"],
            "attention",
            "  preset: attention\n",
        ),
    ],
)
def test_the_lines_to_use_are_of_the_reward_as_it_was_measured(given, chosen, reward):
    config = Config.load(None, ["data.task=slots", *given])
    assert _yaml(config, chosen) == f"reward:\n{reward}sampling:\n  candidates: 8\n  max_new_tokens: 64\n"
