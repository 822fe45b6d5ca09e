"""The table of choices: what heads decide beside what a checker says, by hand."""

import pytest

from benchmarks.choices import line


def probed(follows: float, attention: tuple[float, float], knockout: tuple[float, float]) -> dict:
    """Probes of a base whose heads decide at .65, with the intervals of both presets."""
    heads = {"follows": follows, "pieces": 17, "preset": "attention" if follows >= 0.65 else "knockout"}
    found = {}
    for preset, (low, high) in (("attention", attention), ("knockout", knockout)):
        auc = {"mean": (low + high) / 2, "low": low, "high": high}
        found[preset] = {"heads": heads, "rewards": {preset: {"quality": {"auc": auc}}}}
    return found


@pytest.mark.parametrize(
    ("follows", "attention", "knockout", "chosen", "right"),
    [
        (0.71, (0.8, 0.9), (0.5, 0.7), "attention", "yes"),
        (0.71, (0.5, 0.7), (0.8, 0.9), "attention", "no"),
        (0.41, (0.5, 0.7), (0.8, 0.9), "knockout", "yes"),
        (0.41, (0.8, 0.9), (0.5, 0.7), "knockout", "no"),
        (0.41, (0.6, 0.8), (0.7, 0.9), "knockout", "open"),
    ],
)
def test_a_choice_is_right_where_the_chosen_one_ranks_higher(follows, attention, knockout, chosen, right):
    row = [
        cell.strip() for cell in line("slots-t5", probed(follows, attention, knockout)).strip("|").split("|")
    ]
    assert row[:4] == ["slots-t5", f"{follows:.2f}", "17", chosen]
    assert row[4].startswith(f"{sum(attention) / 2:.2f} ({attention[0]:.2f}-")
    assert row[5].startswith(f"{sum(knockout) / 2:.2f} ({knockout[0]:.2f}-")
    assert row[6] == right
