"""Curves and forest plots: which numbers, which limits, and where they lie."""

import pytest

import made_runs
from cagsr.report import plot
from cagsr.report.curves import Chart, Line, Threshold, curves
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
