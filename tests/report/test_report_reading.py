"""Run directories as plain data: what is damaged is said, and the rest is read."""

import json

import pytest

import made_runs
from cagsr.errors import InputError
from cagsr.report.read import read_run
from cagsr.report.serve import files_of


def test_a_whole_run_has_no_problems(tmp_path):
    run = read_run(made_runs.make_run(tmp_path / "mine"))
    assert (run.name, run.steps, run.problems) == ("mine", 3, [])
    assert run.about["id"] == "7f3a"
    assert [row["step"] for row in run.metrics] == [0, 1, 2, 3, 3]
    assert run.warnings == [(2, "step 2: kl is 2, above 1")]
    assert [row.response for row in run.candidates[:2]] == ["Vaults is small", "Vaults serves English"]


def test_a_directory_without_any_record_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no run: none of run.json, config.yaml"):
        read_run(tmp_path)


def test_damaged_and_torn_lines_are_named_and_the_rest_is_read(tmp_path):
    run = made_runs.make_run(tmp_path)
    first, *_ = made_runs.group()
    lines = [json.dumps(first), "{oops", json.dumps(first | {"reward": "high"}), json.dumps(first)[:40]]
    (run / "candidates.jsonl").write_text("\n".join(lines))
    read = read_run(run)
    assert len(read.candidates) == 1
    assert read.problems == ["candidates.jsonl:2 is damaged or torn; lines 2 and 2 more are left out."]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_no_reward(tmp_path, number):
    run = made_runs.make_run(tmp_path)
    (run / "candidates.jsonl").write_text(json.dumps(made_runs.group()[0]).replace("1.0", number) + "\n")
    read = read_run(run)
    assert (len(read.candidates), len(read.problems)) == (0, 1)


@pytest.mark.parametrize(
    "file", ["run.json", "config.yaml", "metrics.jsonl", "candidates.jsonl", "summary.json"]
)
def test_any_file_may_be_missing_or_be_something_else(tmp_path, file):
    run = made_runs.make_run(tmp_path / "a")
    (run / file).unlink()
    assert read_run(run).name == "a"
    for content in (b"", b"[1, 2]\n", b'{"a"\n', b"\xff\xfe\x00", b"null\n", b"[" * 5000, b"a: b: c\n- d"):
        (run / file).write_bytes(content)
        assert read_run(run).name == "a"


def test_what_is_missing_is_said(tmp_path):
    run = made_runs.make_run(tmp_path)
    (run / "run.json").unlink()
    (run / "config.yaml").write_text("a: [b")
    assert read_run(run).problems == [
        "run.json is missing.",
        "config.yaml is damaged; limits and settings are left out.",
    ]


def test_half_surrogates_are_text_like_any_other(tmp_path):
    rows = [made_runs.candidate("\ud800 a", 1.0, prompt="\udfff")]
    run = read_run(made_runs.make_run(tmp_path, candidates=rows))
    assert (run.candidates[0].response, run.candidates[0].prompt, run.problems) == ("\ud800 a", "\udfff", [])


def test_a_comparison_has_its_systems_responses_and_trained_runs(tmp_path):
    run = read_run(made_runs.make_comparison(tmp_path / "c"))
    assert set(run.responses) == {("base", "0"), ("cagsr", "0")}
    assert [child.name for child in run.children] == ["cagsr"]
    assert run.responses["cagsr", "0"][1].metrics == {"slot_error_rate": 0.6, "length": 2.0}


def test_a_system_name_is_no_path(tmp_path):
    outside = made_runs.make_run(tmp_path / "outside" / "seed-0")
    assert outside.is_dir()
    systems = dict.fromkeys(("base", "../outside", "/etc", ""), made_runs.SUMMARY["systems"]["base"])
    run = read_run(made_runs.make_run(tmp_path / "run", summary={"systems": systems}))
    assert (run.children, run.responses) == ([], {})


def test_of_many_systems_ours_are_drawn_first(tmp_path):
    names = [f"other-{number}" for number in range(7)] + ["cagsr-grpo"]
    systems = dict.fromkeys(names, made_runs.SUMMARY["systems"]["base"])
    run = made_runs.make_run(tmp_path, summary={"systems": systems})
    for name in names:
        made_runs.make_run(run / name / "seed-0")
    read = read_run(run)
    assert [child.name for child in read.children] == ["cagsr-grpo", *names[:5]]
    assert read.not_drawn == ["other-5", "other-6"]


def test_a_comparison_that_is_not_as_expected_is_left_out(tmp_path):
    run = read_run(made_runs.make_run(tmp_path, summary={"systems": {"base": {"length": {"mean": 1}}}}))
    assert run.summary is None
    assert run.problems == [
        "summary.json: systems.base.length.low is not as expected; the comparison is left out."
    ]


def test_a_comparison_that_is_going_on_has_its_runs_already(tmp_path):
    comparison = made_runs.make_comparison(tmp_path)
    (comparison / "summary.json").unlink()
    run = read_run(comparison)
    assert set(run.responses) == {("base", "0"), ("cagsr", "0")}
    assert [child.name for child in run.children] == ["cagsr"]


def test_the_controls_of_a_demo_are_drawn_beside_it(tmp_path):
    demo = made_runs.make_demo(tmp_path)
    for name in ("base", "elsewhere"):
        made_runs.make_run(demo / "controls" / name)
    assert [child.name for child in read_run(demo).children] == ["base"]


def test_a_report_depends_on_its_files_and_those_of_its_systems(tmp_path):
    run = made_runs.make_comparison(tmp_path)
    names = {str(path.relative_to(run)) for path in files_of(run)}
    assert {"summary.json", "cagsr/seed-0/metrics.jsonl", "base/seed-0/responses.jsonl"} <= names


def test_a_row_of_metrics_with_a_number_that_is_not_finite_is_said(tmp_path):
    run = made_runs.make_run(tmp_path)
    (run / "metrics.jsonl").write_text('{"step": 1, "kl": 0.5}\n{"step": 2, "kl": NaN}\n')
    read = read_run(run)
    assert (read.metrics, len(read.problems)) == ([{"step": 1, "kl": 0.5}], 1)
