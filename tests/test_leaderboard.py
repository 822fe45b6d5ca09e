"""What a comparison's table says, in a terminal, in Markdown and in CSV."""

import csv
import io

import numpy as np
import pytest
from rich.console import Console

from cagsr.comparison import compared
from cagsr.leaderboard import csv_text, leaderboard, markdown, primary


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


def test_csv_has_a_line_for_every_system_and_metric_and_keeps_the_numbers_whole(summary):
    rows = list(csv.DictReader(io.StringIO(csv_text(summary))))
    assert len(rows) == 9
    row = next(row for row in rows if (row["system"], row["metric"]) == ("cagsr-grpo", "slot_error_rate"))
    assert float(row["mean"]) == summary["systems"]["cagsr-grpo"]["slot_error_rate"]["mean"]
    assert float(row["to lexical: mean"]) == pytest.approx(-0.29)
    assert row["to lexical: p_holm"] != ""
