"""Curves and forest plots: which numbers, which limits, and where they lie."""

import pytest

import made_runs
from cagsr.report import plot
from cagsr.report.curves import Chart, Line, Threshold, curves
from cagsr.report.facts import run_facts
from cagsr.report.heads import heads_picture
from cagsr.report.page import render
from cagsr.report.plot import Scale, picture
from cagsr.report.read import Run, Summary, read_run
from cagsr.report.standings import costs, headline, standings


def charts(*runs: Run) -> dict[str, Chart]:
    return {chart.key: chart for section in curves(runs) for chart in section.charts}


@pytest.fixture
def run(tmp_path):
    return read_run(made_runs.make_run(tmp_path / "run"))


def test_sections_are_training_parts_evaluation_and_the_rest(run):
    assert {section.title: [chart.key for chart in section.charts] for section in curves([run])} == {
        "Training": ["reward", "kl", "entropy", "length", "repetition"],
        "What the reward is made of": ["signal/coverage"],
        "Evaluation on development prompts": ["evaluation/reward", "evaluation/slot_error_rate"],
        "Optimizer and speed": ["loss", "seconds"],
    }


def test_evaluations_have_the_ends_of_their_intervals(run):
    (line,) = charts(run)["evaluation/slot_error_rate"].lines
    assert (line.x, line.y) == ([0, 3], [0.4, 0.1])
    assert (line.low, line.high) == (pytest.approx([0.3, 0.0]), pytest.approx([0.5, 0.2]))


def test_limits_are_those_that_the_watch_holds_a_run_to(run):
    limits = {key: [(one.value, one.says) for one in chart.limits] for key, chart in charts(run).items()}
    assert limits["kl"] == [(1.0, "limit 1")]
    # Length and entropy are compared with the first step: 21 tokens and .7 nats.
    assert limits["length"] == [(63.0, "limit: 3 × first"), (7.0, "limit: first / 3")]
    assert limits["entropy"] == [(pytest.approx(0.07), "limit: 0.1 × first")]
    assert limits["reward"] == []


@pytest.mark.parametrize("watch", ["[]", "null", "{kl: 3}", "{kl: {limit: null}}", "{kl: {limit: high}}"])
def test_a_config_without_limits_draws_none(tmp_path, watch):
    run = read_run(made_runs.make_run(tmp_path, config=f"watch: {watch}\n"))
    assert charts(run)["kl"].limits == []


def test_runs_are_drawn_over_one_another(run, tmp_path):
    other = read_run(made_runs.make_run(tmp_path / "other", metrics=[{"step": 1, "kl": 0.3}]))
    found = charts(run, other)
    assert [line.run for line in found["kl"].lines] == [0, 1]
    assert [line.run for line in found["reward"].lines] == [0]


def test_a_scale_maps_its_ends_and_may_be_upside_down():
    scale = Scale(2.0, 4.0, 100.0, 0.0)
    assert [scale(value) for value in (2.0, 3.0, 4.0)] == [100.0, 50.0, 0.0]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.5, 1]),
        (0, 60, [0, 20, 40, 60]),
        (-0.3, 0.11, [-0.2, 0]),
        (1, 3, [1, 2, 3]),
    ],
)
def test_ticks_are_round_numbers(low, high, ticks):
    assert Scale(low, high, 0, 1).ticks(3) == pytest.approx(ticks)


def chart(values: list[float], *limits: float) -> Chart:
    line = Line(0, [float(step) for step in range(len(values))], values)
    return Chart("kl", "KL", "", [line], [Threshold(limit, f"limit {limit:g}") for limit in limits])


def test_a_limit_that_is_near_is_drawn_and_one_far_away_is_named():
    drawn = picture(chart([0.1, 0.5], 1.0, 50.0), "c")
    assert [says for _, says in drawn["limits"]] == ["limit 1"]
    assert drawn["beyond"] == ["limit 50 (far above)"]


def test_a_long_run_is_thinned_to_means(monkeypatch):
    monkeypatch.setattr(plot, "MOST_KEPT", 3)
    (line,) = picture(chart([1.0, 3.0, 5.0, 7.0, 10.0]), "c")["data"]["lines"]
    assert (line["x"], line["y"]) == ([0, 2, 4], [2.0, 6.0, 10.0])


def test_many_steps_get_a_running_mean_and_few_get_dots():
    few, many = picture(chart([1.0, 2.0]), "c"), picture(chart([float(n % 2) for n in range(60)]), "c")
    assert (few["lines"][0]["smooth"], len(few["lines"][0]["dots"])) == ("", 2)
    assert (many["lines"][0]["smooth"] != "", many["lines"][0]["dots"]) == (True, [])
    assert plot._running_mean([0, 3, 6, 0], 3) == [1.5, 3, 3, 3]


@pytest.mark.parametrize(
    "values", [[0.0], [2.0, 2.0], [0.0, 0.0], [-1.0, -1.0], [1e-12, 2e-12], [1e12, 1e12 + 1]]
)
def test_any_numbers_can_be_drawn(values):
    drawn = picture(chart(values), "c")
    assert all(
        0 <= float(part) <= 320 for pair in drawn["lines"][0]["path"].split() for part in pair.split(",")
    )
    assert "nan" not in str(drawn)


def test_a_picture_says_in_words_what_it_shows():
    assert picture(chart([0.1, 0.5, 0.2]), "c")["says"] == (
        "KL: from .100 at step 0 to .200 at step 2, lowest .100, highest .500"
    )


# Heads ------------------------------------------------------------------------------------------------------------


def heads(tmp_path, **changes) -> dict:
    run = read_run(made_runs.make_learnt(tmp_path, made_runs.HEADS | changes))
    assert run.heads is not None, run.problems
    return heads_picture(run.heads, "mine", "h")


def test_every_head_is_a_cell_by_its_layer_and_the_read_ones_are_framed(tmp_path):
    found = heads(tmp_path)
    # Cells of 16 pixels from (26, 4): of them .88 where a head agrees, .44 where it does not, in the middle. The
    # strongest is -.5, so that .1, .4 and .25 are a fifth, four fifths and a half of it.
    assert found["cells"]["with"] == [
        (27.0, 21.0, 14.1, 0.2),
        (43.0, 21.0, 14.1, 0.8),
        (59.0, 5.0, 14.1, 0.5),
    ]
    assert found["cells"]["against"] == [(30.5, 8.5, 7.0, 0.0), (46.5, 8.5, 7.0, 0.4), (62.5, 24.5, 7.0, 1.0)]
    assert found["read"] == [
        (42.4, 20.4, 15.2, "layer 2, head 1: .400"),
        (58.4, 4.4, 15.2, "layer 7, head 0: .250"),
    ]
    assert found["x_ticks"] == [(34.0, "0"), (50.0, "2"), (66.0, "7")]
    assert found["y_ticks"] == [(15.5, "0"), (31.5, "1")]
    assert (found["width"], found["height"]) == (320, 56)  # two rows, and 4 above and 20 below


def test_heads_are_told_in_words_and_by_layer(tmp_path):
    found = heads(tmp_path)
    assert found["says"] == (
        "2 of 6 heads are read, in 2 of 3 layers: those that look at a piece of the prompt where the base's responses "
        "would lose it (rank correlation within a piece .325 on the average, 23 pieces)."
    )
    assert found["layers"] == [
        ("0", ".050", ".100", "none"),
        ("2", ".100", ".400", "1"),
        ("7", "−.125", ".250", "0"),
    ]


OVER = "Rank correlation with the knockouts, over all responses and pieces: "


@pytest.mark.parametrize(
    ("follows", "says"),
    [
        (0.782, ".782, at least .65. Attention serves: read heads (reward.preset: attention)."),
        (0.65, ".650, at least .65. Attention serves: read heads (reward.preset: attention)."),
        (0.64, ".640, below .65. Ask for knockouts (reward.preset: knockout)."),
        (-0.1, "−.100, below .65. Ask for knockouts (reward.preset: knockout)."),
        (None, "not known (these heads were learnt before it was measured)."),
    ],
)
def test_what_follows_from_the_heads_is_said(tmp_path, follows, says):
    assert heads(tmp_path, follows=follows)["criterion"] == OVER + says


def test_too_few_pieces_tell_nothing(tmp_path):
    few = heads(tmp_path, follows=0.9, pieces=9)["criterion"]
    assert (
        few
        == f"{OVER}.900, at least .65. Too few pieces to tell: ask for knockouts (reward.preset: knockout)."
    )


def test_knockouts_that_are_clear_by_themselves_need_no_heads(tmp_path):
    clear = heads(tmp_path, undecided=0.194)["criterion"]
    assert clear == (
        f"{OVER}.782, at least .65. Knockouts are clear by themselves (19% undecided, below 20%): ask for knockouts "
        "(reward.preset: knockout)."
    )
    at_least = heads(tmp_path, undecided=0.2)["criterion"]
    assert at_least == f"{OVER}.782, at least .65. Attention serves: read heads (reward.preset: attention)."


def test_the_reward_that_the_heads_chose_is_a_fact_of_the_run(tmp_path):
    chosen = {
        "preset": "knockout",
        "reason": "its heads follow the knockouts of 23 pieces by 0.41, below 0.65",
    }
    run = read_run(made_runs.make_learnt(tmp_path / "run", made_runs.HEADS | {"follows": 0.41} | chosen))
    fact = (
        "chosen for this base",
        "knockout: its heads follow the knockouts of 23 pieces by 0.41, below 0.65",
    )
    assert fact in run_facts(run)
    assert run.heads is not None
    assert heads_picture(run.heads, "run", "heads-0")["says"].startswith(
        "2 of 6 heads would be read, in 2 of 3"
    )
    served = run.heads.model_copy(update={"preset": "attention-values"})
    assert heads_picture(served, "run", "heads-0")["says"].startswith("2 of 6 heads are read, in 2 of 3")


def test_a_base_that_told_no_heads_apart_has_a_reason_and_no_picture(tmp_path):
    run = read_run(
        made_runs.make_learnt(tmp_path, {"preset": "knockout", "reason": "responses never differ"})
    )
    assert (run.heads, run.problems) == (None, [])
    assert ("chosen for this base", "knockout: responses never differ") in run_facts(run)
    assert 'id="heads"' not in render([run])


def test_heads_of_before_the_criterion_are_shown_too(tmp_path):
    old = {name: value for name, value in made_runs.HEADS.items() if name != "follows"}
    page = render([read_run(made_runs.make_learnt(tmp_path, old))])
    assert "not known (these heads were learnt before it was measured)" in page


def test_very_many_heads_fit_and_few_are_not_blown_up(tmp_path):
    found = heads(tmp_path, all={str(layer): [0.1] * 64 for layer in range(80)}, weights={"79": [1.0]})
    (x, y, side, _) = found["cells"]["with"][-1]
    assert x + side <= 316
    assert y + side <= 304
    assert [text for _, text in found["x_ticks"]] == ["0", "10", "20", "30", "40", "50", "60", "70"]
    assert len(found["read"]) == 1


def test_a_run_without_learnt_heads_shows_nothing_of_them_and_damaged_ones_are_a_problem(tmp_path):
    assert 'id="heads"' not in render([read_run(made_runs.make_run(tmp_path / "plain"))])
    for number, damaged in enumerate(({"weights": {}}, {"all": {}}, {"all": {"0": [None]}}, [3], "x")):
        run = read_run(made_runs.make_learnt(tmp_path / f"{number}", damaged))
        assert run.heads is None
        assert len(run.problems) == 1
        assert run.problems[0].startswith("heads.json")
        assert 'id="heads"' not in render([run])


def test_an_empty_layer_is_no_picture(tmp_path):
    run = read_run(made_runs.make_learnt(tmp_path, made_runs.HEADS | {"all": {"0": []}}))
    assert run.problems == ["heads.json: all.0 is not as expected; the heads are left out."]


# The comparison ---------------------------------------------------------------------------------------------------


def summary(**differences: dict) -> Summary:
    changed = {"differences": {"cagsr-base": differences}} if differences else {}
    return Summary.model_validate(made_runs.SUMMARY | changed)


def test_values_come_first_and_then_the_differences_to_each_other_system():
    values, differences = standings(summary())
    assert (values["title"], differences["title"]) == ("Held out, greedy", "Difference to base, paired")
    assert [column["title"] for column in values["columns"]] == ["slot errors", "length"]
    assert values["same"] == ["exact match 0"]
    assert [row["system"] for row in differences["rows"]] == ["cagsr"]
    cell = values["rows"][0]["cells"][0]
    assert (cell["mean"], cell["ends"]) == (".400", ".350 – .450")
    # Errors reach from .05 to .45 over the 98 units between the edges: .4 lies at 7/8 of them.
    assert cell["at"] == pytest.approx(5 + 98 * 0.875, abs=0.1)


@pytest.mark.parametrize(
    ("metric", "found", "verdict"),
    [
        ("slot_error_rate", made_runs.interval(-0.3), "better"),
        ("slot_error_rate", made_runs.interval(0.3), "worse"),
        ("slot_error_rate", made_runs.interval(0.01), ""),
        ("slot_error_rate", made_runs.interval(-0.3, p_holm=0.2), ""),
        ("slot_error_rate", made_runs.interval(-0.3, p_holm=0.01), "better"),
        ("coverage", made_runs.interval(0.3), "better"),
        ("length", made_runs.interval(8.0), "higher"),
        ("mine", made_runs.interval(-8.0), "lower"),
    ],
)
def test_a_difference_is_seen_where_its_interval_leaves_out_0(metric, found, verdict):
    table = standings(summary(**{metric: found}))[1]
    assert table["rows"][0]["cells"][0]["verdict"] == verdict


def test_the_headline_is_the_deciding_metric_of_the_base_and_ours(tmp_path):
    found = headline(read_run(made_runs.make_demo(tmp_path)))
    assert found is not None
    assert (found["metric"], found["before"], found["after"]) == ("slot errors, held out", ".400", ".100")
    assert (found["difference"], found["low"], found["high"], found["verdict"]) == (
        "−.300",
        "−.350",
        "−.250",
        "better",
    )


def test_a_run_without_a_comparison_has_its_evaluations_as_headline(run):
    found = headline(run)
    assert found is not None
    assert (found["metric"], found["before"], found["after"]) == (
        "slot errors, development prompts",
        ".400",
        ".100",
    )
    assert (found["base"], found["system"]) == ("step 0", "step 3")


def test_costs_have_a_column_a_kind():
    assert costs({}) is None
    found = costs({"a": {"seconds": 1234.0}, "b": {"labels": 3.0}})
    assert found == {"columns": ["seconds", "labels"], "rows": [("a", ["1,234", ""]), ("b", ["", "3"])]}
