"""What ratings say, and the files that the rest of the program reads."""

import json
from io import StringIO

import pytest
from rich.console import Console

import raters
import tiny
from cagsr.data.preferences import read_pairs
from cagsr.errors import InputError
from cagsr.metrics.ratings import read_ratings
from cagsr.rating.export import alpha
from cagsr.rating.items import Item
from cagsr.rating.items_source import Response
from cagsr.rating.session import export_ratings, open_rating
from cagsr.rating.store import Store, Study
from cagsr.rating.table import rating_table

P = "describe city : riga"
BASE, TUNED, SAME = (
    Response("short", ("base",)),
    Response("long", ("tuned",)),
    Response("both", ("base", "tuned")),
)
SCORES = [
    Item(P, (BASE,)),
    Item(P, (TUNED,)),
    Item("q", (SAME,)),
    Item("q", (Response(" ", ("best",)),)),
    Item("q", (Response("other", ()),), "foreign"),
    Item(P, (BASE,), "repeated", 0),
]
PAIRS = [Item(P, (BASE, TUNED)), Item("r", (BASE, TUNED)), Item(P, (TUNED, BASE), "repeated", 0)]


@pytest.fixture
def rate(tmp_path):
    """``rate("scores", anna=[(relevance, coherence, overall) or None, ...])``: a database with just these answers."""

    def write(mode, **given):
        store = Store(tmp_path / "ratings.sqlite", create=True)
        if store.study(mode) is None:
            store.add_study(Study(mode, {"seed": 0}, SCORES if mode == "scores" else PAIRS))
        names = ("relevance", "coherence", "overall") if mode == "scores" else ("preference",)
        for rater, rows in given.items():
            if rater not in store.raters():
                store.admit(rater)
            for item, values in enumerate(rows):
                for name, value in zip(names, values or (), strict=False):
                    store.answer(rater, mode, item, name, value)
        store.close()

    return write


def exported(directory, *arguments):
    return export_ratings(directory, None, *(arguments or (None,)))


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# Agreement --------------------------------------------------------------------------------------------------------


def test_alpha_of_a_table_worked_out_by_hand():
    # Values 1, 2, 3 occur 1, 2, 1 times. Ordinal distances: 1-2 and 2-3 (3 - 1.5)^2 = 2.25, 1-3 (4 - 1)^2 = 9.
    # Observed 2.25 + 2.25 = 4.5; expected (2 * 2.25 + 2 * 2.25 + 1 * 9) / 3 = 6.
    found = alpha({"anna": {0: 1, 1: 2}, "ben": {0: 2, 1: 3}})
    assert found == (pytest.approx(1 - 4.5 / 6), 2)
    # Two values: 1 disagreement of 3; expected 3 * 3 / 5.
    assert alpha({"anna": {0: 1, 1: 2, 2: 1}, "ben": {0: 1, 1: 2, 2: 2}})[0] == pytest.approx(1 - 5 / 9)


def test_alpha_is_one_where_all_agree_and_looks_only_at_what_several_rated():
    assert alpha({"anna": {0: 1, 1: 5, 7: 3}, "ben": {0: 1, 1: 5, 8: 2}}) == (1.0, 2)


@pytest.mark.parametrize(
    ("ratings", "items"),
    [({}, 0), ({"anna": {}}, 0), ({"anna": {0: 1}, "ben": {1: 2}}, 0), ({"anna": {0: 4}, "ben": {0: 4}}, 1)],
)
def test_alpha_is_not_defined_without_two_ratings_or_two_values(ratings, items):
    assert alpha(ratings) == (None, items)


# Scores -----------------------------------------------------------------------------------------------------------


def test_means_are_over_prompts_and_a_text_of_two_systems_counts_for_both(rate, tmp_path):
    rate("scores", anna=[(1, 2, 2), (5, 4, 5), (3, 3, 3), None, (5, 5, 5)], ben=[(2, 2, 1), (4, 4, 4)])
    found = exported(tmp_path)["systems"]["scores"]
    overall = {name: (each["overall"]["mean"], each["overall"]["prompts"]) for name, each in found.items()}
    assert overall == {"base": ((1.5 + 3) / 2, 2), "tuned": ((4.5 + 3) / 2, 2)}
    assert found["base"]["relevance"]["ratings"] == 3
    assert found["base"]["overall"]["low"] == 1.5  # two prompts: a resample may hold the worse one twice
    assert found["base"]["overall"]["high"] == 3.0


def test_the_ratings_file_is_what_metrics_ratings_reads(rate, tmp_path):
    rate("scores", anna=[(1, 2, 2), (5, 4, 5), (3, 3, 3)], ben=[(2, 2, 1), (4, 4)])
    summary = exported(tmp_path)
    ratings = read_ratings(tmp_path / "ratings.jsonl")
    assert ratings.mean("base", P, "short") == (1.5, 2)
    assert ratings.mean("tuned", P, "long") == (5.0, 1), "two of three answers are no rating"
    assert ratings.mean("tuned", "q", "both", "coherence") == (3.0, 1)
    assert ratings.mean("base", "q", "both") == (3.0, 1)
    assert summary["ratings"] == len(rows(tmp_path / "ratings.jsonl")) == 5


def test_scores_are_preferences_too_where_more_raters_see_it_one_way(rate, tmp_path):
    rate(
        "scores",
        anna=[(1, 1, 2), (5, 5, 5), (3, 3, 3), (1, 1, 1)],
        ben=[(1, 1, 1), (5, 5, 4)],
        carla=[(1, 1, 4), (5, 5, 3)],
    )
    summary = exported(tmp_path)
    assert rows(tmp_path / "pairs.jsonl") == [
        {"prompt": P, "chosen": "long", "rejected": "short", "raters": 3, "agreed": 2}
    ]
    assert summary["pairs_left_out"] == 1, "nothing can be learnt from a text that is empty"
    pairs, report = read_pairs(str(tmp_path / "pairs.jsonl"), tiny.policy("llama").tokenizer)
    assert [(pair.prompt.text, pair.chosen, pair.rejected) for pair in pairs] == [(P, "long", "short")]
    assert report.used == 1


def test_items_that_are_not_answered_in_full_count_for_nothing(rate, tmp_path):
    rate("scores", anna=[(5,)])
    summary = exported(tmp_path)
    assert summary["systems"] == {"scores": {}}
    assert summary["raters"]["scores"]["anna"]["done"] == 0
    assert (summary["begun"], summary["ratings"], summary["files"]) == ({"scores": {"anna": 1}}, 0, [])
    assert {name: found["items"] for name, found in summary["agreement"]["scores"].items()} == dict.fromkeys(
        ("relevance", "coherence", "overall"), 0
    )
    console = Console(record=True, width=80, file=StringIO())
    console.print(rating_table(summary))
    text = console.export_text()
    assert "mean rating, 1 to 5, and 95 % interval: none yet, nothing is rated in full" in text
    assert "anna: 0 of 6 rated; 1 begun, not counted" in text
    assert "[5.00, 5.00]" not in text


def test_a_mean_of_one_prompt_has_no_interval(rate, tmp_path):
    rate("scores", anna=[(5, 4, 3)])
    summary = exported(tmp_path)
    found = summary["systems"]["scores"]["base"]["relevance"]
    assert found == {"mean": 5.0, "low": None, "high": None, "prompts": 1, "ratings": 1}
    console = Console(record=True, width=80, file=StringIO())
    console.print(rating_table(summary))
    assert "5.00 one prompt" in console.export_text()


def test_checks_are_counted_for_each_rater_and_are_in_no_file(rate, tmp_path):
    careful = [(1, 1, 2), (5, 5, 5), (3, 3, 3), (1, 1, 1), (1, 4, 3), (2, 2, 3)]
    careless = [(5, 5, 5), (5, 5, 5), (5, 5, 5), (5, 5, 5), (5, 5, 5), (1, 1, 1)]
    rate("scores", anna=careful, ben=careless, carla=careful[:5])
    summary = exported(tmp_path)
    done = {"items": 6, "done": 6, "foreign": 1, "repeated": 1}
    assert summary["raters"]["scores"] == {
        "anna": done | {"foreign_passed": 1, "repeated_passed": 1},
        "ben": done | {"foreign_passed": 0, "repeated_passed": 0},
        "carla": done | {"done": 5, "foreign_passed": 1, "repeated": 0, "repeated_passed": 0},
    }
    text = (tmp_path / "ratings.jsonl").read_text() + (tmp_path / "pairs.jsonl").read_text()
    assert "other" not in text
    alone = exported(tmp_path, "anna, carla")
    assert set(alone["raters"]["scores"]) == {"anna", "carla"}
    assert {row["rater"] for row in rows(tmp_path / "ratings.jsonl")} == {"anna", "carla"}


# Pairs ------------------------------------------------------------------------------------------------------------


def test_preferences_become_pairs_by_majority_and_shares_won(rate, tmp_path):
    rate("pairs", anna=[(-1,), (1,)], ben=[(-1,), (-1,)], carla=[(0,)])
    summary = exported(tmp_path)
    assert rows(tmp_path / "pairs.jsonl") == [
        {"prompt": P, "chosen": "long", "rejected": "short", "raters": 3, "agreed": 2}
    ]
    assert summary["pairs_left_out"] == 1
    won = {name: each["won"]["mean"] for name, each in summary["systems"]["pairs"].items()}
    assert won == {"base": pytest.approx((0.5 / 3 + 0.5) / 2), "tuned": pytest.approx((2.5 / 3 + 0.5) / 2)}
    assert summary["files"] == [str(tmp_path / "pairs.jsonl")]


def test_a_choice_replaces_what_the_same_raters_scores_said(rate, tmp_path):
    rate("scores", anna=[(1, 1, 1), (5, 5, 5)])
    rate("pairs", anna=[(1,)])
    exported(tmp_path)
    (pair,) = rows(tmp_path / "pairs.jsonl")
    assert (pair["chosen"], pair["rejected"], pair["raters"]) == ("short", "long", 1)


# Files ------------------------------------------------------------------------------------------------------------


def test_an_export_replaces_what_an_export_wrote_and_nothing_else(rate, tmp_path):
    rate("scores", anna=[(1, 1, 1), (5, 5, 5)])
    exported(tmp_path)
    rate("scores", ben=[(2, 2, 2)])
    exported(tmp_path)
    assert len(rows(tmp_path / "ratings.jsonl")) == 3
    with (tmp_path / "ratings.jsonl").open("a") as file:
        file.write("a note of mine\n")
    before = (tmp_path / "ratings.jsonl").read_bytes()
    with pytest.raises(
        InputError, match=r"ratings.jsonl was not written by cagsr rate, or was changed since"
    ):
        exported(tmp_path)
    assert (tmp_path / "ratings.jsonl").read_bytes() == before
    (tmp_path / "elsewhere").mkdir()
    export_ratings(tmp_path, tmp_path / "elsewhere", None)
    assert len(rows(tmp_path / "elsewhere" / "ratings.jsonl")) == 3


def test_an_export_of_nothing_says_so(rate, tmp_path):
    with pytest.raises(InputError, match="nobody has rated here yet"):
        exported(tmp_path)
    rate("scores", anna=[])
    with pytest.raises(InputError, match="has no answer of anna yet"):
        exported(tmp_path)
    with pytest.raises(InputError, match="nobody called 'ana' rated here; did you mean 'anna'"):
        exported(tmp_path, "ana")
    with pytest.raises(InputError, match="is no directory"):
        export_ratings(tmp_path, tmp_path / "none", None)


def test_a_run_that_people_rated_gives_pairs_of_its_own_candidates(tmp_path):
    directory = raters.run(tmp_path / "run", 6)
    with open_rating(directory, "anna", mode="pairs", port=0) as rating:
        for number, item in enumerate(rating.study.items):
            longer = len(item.responses[0].text) > len(item.responses[1].text)
            rating.store.answer("anna", "pairs", number, "preference", 1 if longer else -1)
    summary = exported(directory)
    assert summary["systems"]["pairs"] == {}, "a run does not compete with itself"
    for row in rows(directory / "pairs.jsonl"):
        assert len(row["chosen"]) >= len(row["rejected"])
    assert summary["pairs"] == 6
