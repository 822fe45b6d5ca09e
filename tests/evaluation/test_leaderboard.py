"""What a comparison's table says, in a terminal, in Markdown and in CSV."""

import csv
import io

import numpy as np
import pytest
from rich.console import Console

from cagsr.evaluation.leaderboard import csv_text, leaderboard, markdown, primary
from cagsr.evaluation.paired_differences import compared
from cagsr.evaluation.tables import comparison_table, difference_lines
from cagsr.report.read import Summary
from cagsr.report.standings import standings


@pytest.fixture
def summary() -> dict:
    errors = np.linspace(0.3, 0.5, 13)
    systems = {
        "no-rl": {"slot_error_rate": errors, "clean": np.zeros(13), "length": np.full(13, 20.8)},
        "cagsr-grpo": {"slot_error_rate": errors - 0.27, "clean": np.ones(13), "length": np.full(13, 31.6)},
        "lexical": {"slot_error_rate": errors + 0.02, "clean": np.zeros(13), "length": np.full(13, 17.6)},
    }
    cost = {"seconds": 61.0, "generated_tokens": 12345.0, "labels": 0.0}
    opinions = {
        name: {"judge": np.full(7, rating)} for name, rating in zip(systems, (3.0, 4.5, 2.5), strict=True)
    }
    return {
        **compared(systems, ["no-rl", "lexical"]),
        "opinions": compared(opinions, ["no-rl", "lexical"]),
        "sampled": {"no-rl": {"slot_error_rate": {"mean": 0.303}, "kl": {"mean": 0.0}}},
        "cost": dict.fromkeys(systems, cost),
        "not_for_this_data": {"rlhf": "no human pairs"},
    }


def test_the_deciding_metric_is_the_first_that_was_measured(summary):
    assert primary(summary) == "slot_error_rate"
    for metrics in summary["systems"].values():
        del metrics["slot_error_rate"]
    assert primary(summary) == "length"


def test_the_terminal_table_fits_80_columns_and_has_a_row_for_every_system(summary):
    console = Console(width=80, record=True, file=io.StringIO(), color_system=None)
    console.print(leaderboard(summary, "slots"))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if line.startswith("cagsr-grpo"))
    assert row.split()[1] == ".130"
    assert "[-.270, -.270]" in row
    assert any(line.startswith("rlhf") and "no human pairs" in line for line in lines)


def test_one_prompt_gives_no_interval_and_no_difference_anywhere(summary):
    def one(rise):
        return {"slot_error_rate": np.array([0.5 - rise]), "length": np.array([9.0])}

    summary |= compared({"no-rl": one(0.0), "cagsr-grpo": one(0.25)}, ["no-rl"])
    summary |= {"opinions": {"systems": {"no-rl": {}}}}
    console = Console(width=80, record=True, file=io.StringIO(), color_system=None)
    console.print(leaderboard(summary, "slots"))
    console.print(comparison_table(summary, "slots"))
    text = console.export_text()
    assert "one prompt" in text
    assert "1 prompt" in text
    assert "[" not in text
    assert "*" not in text
    assert "| -.250 one prompt |" in markdown(summary)
    row = next(row for row in csv.reader(io.StringIO(csv_text(summary))) if row[0] == "cagsr-grpo")
    assert row[:7] == ["cagsr-grpo", "slot_error_rate", "0.25", "", "", "-0.25", ""]
    first = difference_lines(summary, "cagsr-grpo-no-rl")[0]
    assert first.endswith("-0.250  one prompt, from which nothing follows")
    table = standings(Summary.model_validate(summary | {"sampled": {}}))[1]
    cell = table["rows"][0]["cells"][0]
    assert (cell["ends"], cell["verdict"]) == ("one prompt", "")


NAMES = ["no-rl", "lexical", "synthetic-preference", *(f"a-system-of-some-name-{n}" for n in range(17))]


@pytest.mark.parametrize(
    ("width", "more"),
    [
        (80, ""),
        (200, " said repeated relevance tokens seconds"),
    ],
)
def test_twenty_systems_show_as_many_metrics_as_fit_and_stars_without_colour(summary, width, more):
    metrics = ("slot_error_rate", "coverage", "clean", "hallucination", "repetition", "rouge_l")
    better = {name: 0.2 * (name in NAMES[2:]) for name in NAMES}
    systems = {
        name: {metric: np.linspace(0.31, 0.5, 13) - better[name] for metric in metrics}
        | {"relevance": np.full(13, 0.5), "length": np.full(13, 22.6)}
        for name in NAMES
    }
    found = (
        summary
        | compared(systems, ["no-rl", "lexical"])
        | {"cost": {name: {"seconds": 1161.0} for name in NAMES}}
    )
    console = Console(width=width, file=io.StringIO())
    console.print(leaderboard(found, "e2e", width))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    headings = f"slot errors to no-rl to lexical clean invented ROUGE-L{more}"
    assert sorted(" ".join(lines[1:3]).split()) == sorted(headings.split())
    starred = [line for line in lines if line.startswith("synthetic-")]
    assert starred[0].split()[1:6] == [".205", "[-.200,", "-.200]*", "[-.200,", "-.200]*"]
    assert [line for line in lines if "*" in line][-1] == "* differs, Holm's corrected p < .05"
    assert "1,161" in starred[0] or width == 80


def test_markdown_has_one_cell_a_column_in_every_row_and_bold_where_the_corrected_test_is_significant(
    summary,
):
    lines = markdown(summary).splitlines()
    widths = {line.count("|") for line in lines}
    assert len(widths) == 1
    row = next(line for line in lines if line.startswith("| cagsr-grpo"))
    assert "**-.270 [-.270, -.270]**" in row
    assert "12,345" in row
    assert "4.50 [4.50, 4.50]" in row
    base = next(line for line in lines if line.startswith("| no-rl"))
    assert ".303" in base


def test_markdown_says_how_often_a_judge_preferred_a_system_where_it_was_asked(summary):
    summary["preferences"] = {
        "cagsr-grpo-no-rl": {"wins": 3, "mean": 0.75, "low": 0.5, "high": 1.0},
        "lexical-no-rl": {"wins": 0, "failures": 4},
    }
    heading, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in markdown(summary).splitlines()
    )
    column = heading.index("judge prefers to no-rl")
    assert [row[column] for row in rows] == ["", ".750 [.500, 1.00]", "", ""]


def test_csv_has_a_line_for_every_system_and_metric_and_keeps_the_numbers_whole(summary):
    rows = list(csv.DictReader(io.StringIO(csv_text(summary))))
    assert len(rows) == 9
    row = next(row for row in rows if (row["system"], row["metric"]) == ("cagsr-grpo", "slot_error_rate"))
    assert float(row["mean"]) == summary["systems"]["cagsr-grpo"]["slot_error_rate"]["mean"]
    assert float(row["to lexical: mean"]) == pytest.approx(-0.29)
    assert row["to lexical: p_holm"] != ""


def test_csv_has_the_difference_to_the_base_at_equal_length_and_how_many_prompts_that_is(summary):
    summary["length_matched"] = {
        "lexical-no-rl": {"prompts": 0.7, "slot_error_rate": {"mean": 0.02, "low": 0.01, "high": 0.03}},
        "cagsr-grpo-no-rl": {"prompts": 0.0},
    }
    rows = list(csv.DictReader(io.StringIO(csv_text(summary))))
    found = {
        row["system"]: [row[f"at equal length: {part}"] for part in ("prompts", "mean", "low", "high")]
        for row in rows
        if row["metric"] == "slot_error_rate"
    }
    assert found == {
        "no-rl": ["", "", "", ""],
        "cagsr-grpo": ["0.0", "", "", ""],
        "lexical": ["0.7", "0.02", "0.01", "0.03"],
    }
