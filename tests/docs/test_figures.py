"""What the pages quote as measured is what the results files say, and none of it is quoted from nowhere."""

import json

import numpy as np
import pytest

from benchmarks import pages, results, tutorial
from benchmarks.record import table
from benchmarks.table import Case, case_part
from cagsr.evaluation.paired_differences import compared

# A diary, and pages that are written whole or nearly so from what was measured.
OWN_SOURCE = ("docs/lab-notes.md", "docs/results.md", "docs/performance.md", "docs/reliability.md")

SOURCES = {
    "results": {
        "slots-t5": {
            "about": "7 prompts, seeds 0, 1; each system may sample 1,234 responses (5 steps).",
            "columns": ["system", "slot errors", "to no-rl", "tokens"],
            "rows": [
                ["no-rl", ".393 [.361, .425]", "", "1,234"],
                ["cagsr-grpo", ".133 [.101, .172]", "**-.260 [-.299, -.175]**", "24.4"],
                ["lexical", "1.21 [1.00, 1.40]", "+.812 [+.607, +1.034]", "9"],
            ],
        },
        "qa-llama": {
            "about": "3 prompts.",
            "columns": ["system", "slot errors", "to no-rl"],
            "rows": [["no-rl", "1.00 [.94, 1.07]", ""], ["oracle", ".981 [.9, 1.1]", "-.019 [-.1, +.1]"]],
        },
        "verdicts": {
            "columns": ["case", "preset", "probe", ""],
            "rows": [
                ["slots-t5", "robust", "go", "helped"],
                ["slots-t5", "lexical", "no", "did not"],
                ["qa-llama", "robust", "no", "did not"],
            ],
        },
    },
    "performance": {
        "trl": {
            "tables": [
                {"columns": ["what"], "rows": []},
                {
                    "columns": ["S:T", "Way", "TRL / this"],
                    "rows": [["2:1", "cagsr, robust", "1.43 (1.40-1.57)"]],
                },
            ]
        }
    },
    "reliability": {"kills": {"items": 200, "failed": 0}},
    "tutorial": {"demo": {"log": ["step 1/60", "step 60/60"]}},
}
CAGSR = "results > slots-t5 > cagsr-grpo > slot errors"


def test_every_page_says_what_the_results_files_say():
    problems = pages.fill_all(write=False)
    assert not problems, "run python -m benchmarks.pages --write\n" + "\n".join(map(str, problems))


@pytest.mark.parametrize("page", [page for page in pages.PAGES if page not in OWN_SOURCE])
def test_a_page_quotes_no_figure_without_its_source(page):
    problems = pages.unsourced((pages.ROOT / page).read_text(encoding="utf-8"), page)
    assert not problems, "put a comment with the source above (benchmarks/pages.py)\n" + "\n".join(
        map(str, problems)
    )


def test_the_probes_verdicts_are_about_the_figures_of_the_same_comparisons():
    record = pages.read_sources()["results"]
    systems = {"robust": "cagsr-grpo"}
    assert len(record["verdicts"]["rows"]) == 48
    for case, preset, _, _, errors, *_ in record["verdicts"]["rows"]:
        means = {row[0]: float(row[1].split(" ")[0]) for row in record[case]["rows"]}
        before, after = map(float, errors.split(" -> "))
        assert before == pytest.approx(means["no-rl"], abs=0.0051)
        assert after == pytest.approx(means[systems.get(preset, preset)], abs=0.0051)


@pytest.mark.parametrize(
    ("source", "written", "filled"),
    [
        (CAGSR, ".133", ".133"),
        (CAGSR, ".2", ".1"),
        (CAGSR, "13.3 %", "0.1 %"),
        (f"{CAGSR} > interval", "[.1, .18]", "[.1, .17]"),
        (f"{CAGSR} > high", "0.100", "0.172"),
        ("results > slots-t5 > cagsr-grpo > to no-rl", "-.260", "-.260"),
        ("results > slots-t5 > cagsr-grpo > to no-rl", "+.26", "-.26"),
        ("results > slots-t5 > cagsr-grpo > to no-rl", "−.30", "−.26"),
        ("results > slots-t5 > lexical > to no-rl > high", "+1.111", "+1.034"),
        ("results > slots-t5 > lexical > to no-rl > low", ".5", ".6"),
        ("results > slots-t5 > no-rl > tokens", "9,999 s", "1,234 s"),
        ("performance > trl > 2:1 > cagsr, robust > TRL / this", "2.0x faster", "1.4x faster"),
        ("reliability > kills > items", "7 %", "200 %"),
        ("given; reliability > kills > failed", "a KL of .05 and 3 %", "a KL of .05 and 0 %"),
    ],
)
def test_a_figure_is_filled_in_at_the_digits_and_in_the_style_it_is_written_with(source, written, filled):
    text = f"Before.\n\n<!-- figures: {source} -->\nFrom `.9` it is {written}.\n\nAfter, .77.\n"
    found, problems = pages.fill(text, SOURCES, "page.md")
    assert found == text.replace(written, filled)
    assert bool(problems) == (filled != written)
    assert [problem.line for problem in problems] == [3] * len(problems)
    assert [str(problem) for problem in pages.unsourced(text, "page.md")] == ["page.md:6: .77 has no source"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("results > slots-t5 > cagsr > slot errors", "there is no 'cagsr > slot errors'"),
        ("results > slots-t5 > cagsr-grpo > errors", "there is no 'cagsr-grpo > errors'"),
        ("results > slots > cagsr-grpo > slot errors", "there is no 'slots > cagsr-grpo > slot errors'"),
        ("results > slots-t5 > cagsr-grpo > tokens > low", "no such number in '24.4'"),
        ("results > slots-t5 > no-rl > to no-rl", "no such number in ''"),
        (f"{CAGSR}; {CAGSR}", "1 figures (.133), 2 sources"),
    ],
)
def test_a_source_that_is_none_is_named_and_the_page_left_as_it_is(source, message):
    text = f"<!-- figures: {source} -->\nIt is .133.\n"
    found, (problem,) = pages.fill(text, SOURCES, "page.md")
    assert found == text
    assert message in problem.what


def test_blocks_between_comments_are_written_from_the_record():
    text = (
        "<!-- table: results, verdicts counted -->\n\nold\n\ntable\n\n<!-- end -->\n\n"
        "<!-- text: tutorial > demo > log -->\n\n<!-- end -->\n\n"
    )
    found, problems = pages.fill(text, SOURCES, "page.md")
    assert found == (
        "<!-- table: results, verdicts counted -->\n\n"
        "| probe | training helped | it did not |\n| --- | --- | --- |\n"
        "| go | 1 | 0 |\n| caution | 0 | 0 |\n| no | 0 | 2 |"
        "\n\n<!-- end -->\n\n"
        "<!-- text: tutorial > demo > log -->\n\n```text\nstep 1/60\nstep 60/60\n```\n\n<!-- end -->\n\n"
    )
    assert len(problems) == 2
    assert pages.fill(found, SOURCES, "page.md") == (found, [])


def test_an_overview_has_the_mean_of_the_deciding_metric_bold_where_it_differs_and_a_gap_where_nothing_was_run():
    assert results.overview(SOURCES["results"]).splitlines() == [
        "| system | slots-t5 | qa-llama |",
        "| --- | --- | --- |",
        "| no-rl | .393 | 1.00 |",
        "| cagsr-grpo | **.133** |  |",
        "| lexical | 1.21 |  |",
        "| oracle |  | .981 |",
    ]


def test_the_table_of_gains_has_a_row_for_each_that_answered_and_its_difference_to_the_first(monkeypatch):
    columns = ["system", "seed", "asked", "slot errors", "slot errors to no-rl", "said", "invented"]
    columns += ["wrong values", "foreign names", "tokens"]
    rows = [
        ["no-rl", "", "plain", ".758", "", ".470", ".073", ".030", "1.192", "63"],
        ["no-rl", "", "better", ".544", "**-.214 [-.281, -.153]**", ".581", ".059", ".032", ".783", "35"],
        ["lexical", "1", "plain", ".513", "-.244 [-.309, +.179]", ".746", ".091", ".044", ".833", "64"],
    ]
    shown = {("no-rl", "", "plain"): "a model", ("lexical", "1", "plain"): "a control"}
    monkeypatch.setattr(pages, "ASSISTANT", shown)
    lines = pages.gains({"real": {"restaurants": {"columns": columns, "rows": rows}}}).splitlines()
    assert lines[2:] == [
        "| a model | .758 | .470 | .073 | .030 | 1.192 | 63 |",
        "| a control | .513 -.244 [-.309, +.179] | .746 | .091 | .044 | .833 | 64 |",
    ]


def test_every_case_is_a_section_with_its_provenance_and_its_whole_table():
    assert results.every_case(SOURCES["results"]).startswith(
        "### slots, T5 shape\n\n7 prompts, seeds 0, 1; each system may sample 1,234 responses (5 steps).\n\n"
        "| system | slot errors | to no-rl | tokens |\n| --- | --- | --- | --- |\n"
        "| no-rl | .393 [.361, .425] |  | 1,234 |\n"
    )
    assert "\n\n### qa, Llama shape\n\n3 prompts.\n\n" in results.every_case(SOURCES["results"])


def test_a_case_measured_again_replaces_its_own_part_and_its_own_verdicts(tmp_path):
    path, order = tmp_path / "results.json", ["slots-t5", "qa-llama"]
    e2e = {"columns": ["system"], "rows": [["no-rl"]]}
    path.write_text(json.dumps({"e2e": e2e, **SOURCES["results"]}))
    again = {"about": "anew", "columns": ["system"], "rows": [["no-rl"]]}
    verdicts = {
        "columns": ["case", "preset", "probe", ""],
        "rows": [["slots-t5", "robust", "caution", "helped"]],
    }
    results.keep(path, {"slots-t5": again}, verdicts, order)
    record = results.read(path)
    assert list(record) == ["e2e", "verdicts", *order]
    assert (record["e2e"], record["slots-t5"]) == (e2e, again)
    assert record["qa-llama"] == SOURCES["results"]["qa-llama"]
    assert record["verdicts"]["rows"] == [
        ["slots-t5", "robust", "caution", "helped"],
        ["qa-llama", "robust", "no", "did not"],
    ]


def test_a_table_that_is_read_is_the_one_that_was_written():
    columns, rows = ["a", ""], [["1", "x"], ["", "**y**"]]
    assert results.read_table(f"before\n\n{table(columns, rows)}\n\nafter") == (columns, rows)


def test_the_tutorial_is_recorded_by_the_commands_that_it_shows():
    page = (pages.ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
    for command in (tutorial.LEXICAL, tutorial.PROBE, tutorial.TRAIN, tutorial.EVAL):
        assert f"\n{command}\n" in page
    for name in pages.read_sources()["tutorial"]:
        assert name in tutorial.PARTS


def test_a_warning_is_recorded_with_the_lines_that_it_goes_on_in():
    lines = [
        "step 3/60",
        "warning: step 21: shuffled is 1",
        "  for 3 checks",
        "  in a row",
        "",
        "  no warning",
        "x",
    ]
    assert tutorial.warnings(lines) == lines[1:4]


def test_a_comparison_becomes_a_part_of_the_record_as_its_own_table_shows_it():
    errors = np.linspace(0.3, 0.5, 13)
    systems = {"no-rl": {"slot_error_rate": errors}, "cagsr-grpo": {"slot_error_rate": errors - 0.27}}
    cost = {"seconds": 61.0, "generated_tokens": 12345.0, "labels": 0.0}
    summary = {
        **compared(systems, ["no-rl"]),
        "opinions": {"systems": {name: {} for name in systems}},
        "sampled": {"no-rl": {"slot_error_rate": {"mean": 0.303}, "kl": {"mean": 0.0}}},
        "cost": dict.fromkeys(systems, cost),
        "not_for_this_data": {"rlhf": "no human pairs"},
        "prompts": 13,
        "seeds": [0, 2],
        "budget": {"responses": 2560, "steps": 40},
    }
    part = case_part(Case("slots", "t5", 2500), summary)
    assert part["command"] == "make table ARGS='--case slots-t5'"
    assert part["about"] == "13 prompts, seeds 0, 2; each system may sample 2,560 responses (40 steps)."
    assert part["columns"][:3] == ["system", "slot errors", "to no-rl"]
    base, trained, left_out = part["rows"]
    assert base[0] == "no-rl"
    assert base[2:] == ["", ".303", ".000", "61", "12,345", "0"]
    assert trained[:1] + trained[2:3] == ["cagsr-grpo", "**-.270 [-.270, -.270]**"]
    assert left_out[:2] == ["rlhf", "no human pairs"]
