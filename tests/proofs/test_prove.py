"""The runner of the proofs: whatever a proof does, it ends, is counted, and never passes for proved."""

import json
import os
import re
import sys
import tempfile
from collections import Counter
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import prove
import reliability
from reliability import Run
from workers import Proof, Result, run

PLAIN = """
TITLE = "plain"
PROMISE = 2
COUNT = 10
def prove(count, random, advance):
    for _ in range(count):
        advance(odd=1, weight=random.random())
    return []
def figures(sums):
    return f"{sums['odd']} of them odd"
"""
FAKES = {
    "plain": PLAIN,
    "failing": """
TITLE = "failing"
PROMISE = 1
COUNT = 30
SHARDS = False
def prove(count, random, advance):
    return [f"item {n}" for n in range(count) if not advance() and n < 23]
""",
    "raising": """
TITLE = "raising"
PROMISE = 3
SHARDS = False
COUNT = 3
def prove(count, random, advance):
    advance()
    raise ValueError("no good")
""",
    "killed": """
import os
TITLE = "killed"
PROMISE = 3
SHARDS = False
COUNT = 3
def prove(count, random, advance):
    advance()
    print("about to go", flush=True)
    os.kill(os.getpid(), 9)
""",
    "leaving": """
import os
TITLE = "leaving"
PROMISE = 4
SHARDS = False
COUNT = 3
def prove(count, random, advance):
    os._exit(7)
""",
    "hanging": """
import subprocess, sys, time
TITLE = "hanging"
PROMISE = 5
SHARDS = False
COUNT = 3
LIMIT = 2
def prove(count, random, advance):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    print(child.pid, flush=True)
    time.sleep(1000)
""",
    "skipping": """
TITLE = "skipping"
PROMISE = 6
SHARDS = False
COUNT = 3
def prove(count, random, advance):
    advance()
    return []
def figures(sums):
    return 1 / sums["nothing"]
""",
    "missing": """
TITLE = "missing"
PROMISE = 7
SHARDS = False
COUNT = 3
import no_such_module
""",
    "alone": """
TITLE = "alone"
PROMISE = 1
ALONE = True
COUNT = 5
def prove(count, random, advance):
    for _ in range(count):
        advance()
    return []
""",
    "placed": """
import os, tempfile
from pathlib import Path
TITLE = "placed"
PROMISE = 8
SHARDS = False
COUNT = 1
def prove(count, random, advance):
    advance()
    found = [os.listdir("."), tempfile.mkdtemp(), os.getcwd(), os.environ["TMPDIR"]]
    return [str(each) for each in found]
""",
}
MACHINE = "A processor."
MADE = Run("2026-11-24", "abc1234", 3, 2, 3720, MACHINE)


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Make a proof of each fake named; temporary files go to a directory of this test."""
    modules, temporary = tmp_path / "modules", tmp_path / "temporary"
    modules.mkdir()
    temporary.mkdir()
    for name, source in FAKES.items():
        (modules / f"fake_{name}.py").write_text(source)
    monkeypatch.syspath_prepend(modules)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def make(*names: str) -> list[Proof]:
        return [Proof.of(f"fake_{name}") for name in names]

    yield make
    assert not list(temporary.glob("prove-*"))


def nothing(result: Result) -> None:
    pass


def proved(proofs: list[Proof], scale: float = 1, jobs: int = 2) -> list[Result]:
    return run(proofs, scale, 0, jobs, nothing)


def test_the_shards_of_a_proof_add_up(fakes):
    (result,) = proved(fakes("plain"))
    assert (result.total, result.done, result.failures, result.open_shards) == (10, 10, [], 0)
    assert result.sums["odd"] == 10
    assert result.figures == "10 of them odd"
    assert result.proof == Proof("fake_plain", 2, "plain", shards=4, alone=False, limit=600)


def test_a_seed_means_the_same_with_any_number_of_workers(fakes):
    (one,), (three,) = (proved(fakes("plain"), jobs=jobs) for jobs in (1, 3))
    assert one.sums["weight"] == pytest.approx(three.sums["weight"], abs=1e-12)  # added in another order
    (other,) = run(fakes("plain"), 1, 1, 2, nothing)
    assert abs(other.sums["weight"] - one.sums["weight"]) > 1e-6


def test_a_scaled_proof_has_its_part_of_the_items(fakes):
    results = proved(fakes("plain", "failing"), scale=0.1)
    assert [(result.proof.title, result.done) for result in results] == [("failing", 3), ("plain", 1)]


def test_a_proof_that_raises_dies_leaves_or_skips_has_failed_by_name(fakes):
    results = proved(fakes("raising", "killed", "leaving", "skipping", "missing"))
    assert {result.proof.title: result.failures for result in results} == {
        "raising": ["shard 1 of 1: ValueError: no good (fake_raising.py:8)"],
        "killed": ["shard 1 of 1: killed by signal 9, after 1 items; it last said: about to go"],
        "leaving": ["shard 1 of 1: ended with exit code 7, after 0 items"],
        "skipping": ["shard 1: 1 items done of 3"],
        "missing": [
            "shard 1 of 1: ModuleNotFoundError: No module named 'no_such_module' (fake_missing.py:6)"
        ],
    }
    assert [result.figures for result in results if result.figures] == [
        "no figures: ZeroDivisionError: division by zero (fake_skipping.py:10)"
    ]


def test_a_proof_that_hangs_is_ended_with_all_that_it_started(fakes):
    (result,) = proved(fakes("hanging"))
    (failure,) = result.failures
    found = re.fullmatch(
        r"shard 1 of 1: 2 s without an item done, after 0 items; it last said: (\d+)", failure
    )
    assert found, failure
    state = Path(f"/proc/{found[1]}/stat")  # a zombie where nothing reaps orphans
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_what_must_be_alone_comes_last_and_alone(fakes):
    began, ended = [], []

    def watch(result: Result) -> None:
        name = result.proof.title
        began.extend([name] if name not in began else [])
        ended.extend([name] if not result.open_shards and name not in ended else [])
        assert name != "alone" or set(ended) >= {"plain", "failing"}

    run(fakes("alone", "plain", "failing"), 1, 0, 3, watch)
    assert began[-1] == "alone"


def test_a_proof_works_in_an_empty_directory_of_its_own_that_is_removed(fakes):
    (result,) = proved(fakes("placed"))
    listed, made, place, temporary = result.failures
    assert listed == "[]"
    assert place == temporary == str(Path(made).parent)
    assert not Path(place).parent.exists()


def test_every_proof_named_exists_and_they_are_in_order():
    promises = [Proof.of(name).promise for name in prove.PROOFS]
    assert promises == sorted(promises)


def test_what_the_runner_reads_must_be_literal(tmp_path, monkeypatch):
    (tmp_path / "fake_computed.py").write_text('TITLE = "a"\nPROMISE = len(TITLE)\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="malformed"):
        Proof.of("fake_computed")


# The command --------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(fakes, tmp_path, monkeypatch, capsys):
    """``command("failing", ...)`` gives a function that runs the command with these fakes as all the proofs."""
    monkeypatch.setattr(reliability, "PAGE", tmp_path / "reliability.md")
    monkeypatch.setattr(reliability, "ROWS", tmp_path / "reliability.json")
    monkeypatch.setenv("COLUMNS", "100")

    def make(*names: str):
        monkeypatch.setattr(prove, "PROOFS", tuple(f"fake_{name}" for name in names))

        def call(*arguments: str) -> tuple[int, str]:
            code = prove.main(arguments)
            return code, capsys.readouterr().out

        return call

    return make


def test_failures_are_listed_up_to_twenty_and_give_exit_code_1(command):
    code, out = command("failing", "plain")()
    assert code == 1
    assert re.search(r"│ +1 │ failing +│ +30 │ +23 │ +│ +\d+ │", out)
    assert re.search(r"│ +2 │ plain +│ +10 │ +0 │ 10 of them odd │ +\d+ │", out)
    assert "\nfake_failing: item 19\nfake_failing: and 3 more\n" in out
    assert "item 20" not in out
    assert re.search(r"^ +\d+ s  .*fake_failing 30 of 30, 23 failed", out, re.MULTILINE)


def test_nothing_failed_is_exit_code_0_and_nothing_is_written_unasked(command):
    code, _ = command("failing", "plain")("--promise", "2")
    assert code == 0
    assert not reliability.PAGE.exists()
    assert not reliability.ROWS.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--write", "--scale", "0.5"], "--write needs the full counts; leave --scale out"),
        (["--scale", "0"], "--scale 0.0: must be above 0 and at most 1"),
        (["--jobs", "0"], "--jobs 0: at least 1"),
    ],
)
def test_a_scaled_run_is_never_written(arguments: list[str], message: str, command, capsys):
    with pytest.raises(SystemExit) as ended:
        command("plain")(*arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_promise_without_a_proof_is_refused(command, capsys):
    assert command("plain")("--promise", "9")[0] == 2


def test_one_promise_is_renewed_and_the_others_rows_stay(command, monkeypatch):
    call = command("alone", "plain")
    monkeypatch.setattr(
        Run, "here", lambda seed, jobs, seconds: Run("2026-01-02", "aaa", seed, jobs, 5, MACHINE)
    )
    assert call("--write", "--promise", "1", "--seed", "4")[0] == 0
    assert "| 2 | plain | not run |" in reliability.PAGE.read_text()
    monkeypatch.setattr(
        Run, "here", lambda seed, jobs, seconds: Run("2026-03-04", "bbb", seed, jobs, 6, MACHINE)
    )
    assert call("--write", "--promise", "2")[0] == 0
    rows = json.loads(reliability.ROWS.read_text())
    assert list(rows) == ["fake_alone", "fake_plain"]
    assert rows["fake_alone"]["run"]["date"] == "2026-01-02"
    assert rows["fake_plain"] | {"seconds": 0} == {
        "items": 10,
        "failed": 0,
        "figures": "10 of them odd",
        "seconds": 0,
        "run": {"date": "2026-03-04", "code": "bbb", "seed": 0, "jobs": 2, "seconds": 6, "machine": MACHINE},
    }
    page = reliability.PAGE.read_text()
    assert "not run" not in page
    assert "1. 2026-01-02, code aaa, seed 4, 2 workers, 5 s. A processor.\n2. 2026-03-04, code bbb" in page


def test_in_a_terminal_each_proof_has_a_bar(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    console = Console(file=StringIO(), force_terminal=True, width=100, color_system=None)
    proofs = [Proof("kills", 1, "killed"), Proof("cuts", 2, "cut")]
    show = prove.Show(console, proofs)
    show(Result(proofs[0], 1, 200, 34, ["no"]))
    console.print(show.bars)
    drawn = console.file.getvalue()
    assert re.search(r"^ 1 killed \S+ +34/200 1 failed 0:00:00", drawn, re.MULTILINE)
    assert re.search(r"^ 2 cut +\S+ +0/\? +-:--:--", drawn, re.MULTILINE)


# The page -----------------------------------------------------------------------------------------------------------


def test_the_page_has_a_row_a_proof_and_the_runs_they_came_from():
    known = [Proof("kills", 1, "killed"), Proof("cuts", 2, "a | b"), Proof("full", 3, "disk full")]
    results = [
        Result(known[0], 0, 200, 1200, [], Counter(), "63 inside a save", 1234.6),
        Result(known[1], 0, 7, 7, ["/tmp/x: no"], Counter(), "", 0.2),
    ]
    rows = {result.proof.name: reliability.row(result, MADE) for result in results}
    text = reliability.page(known, rows)
    assert (
        "| # | Promise | Items | Failed | Figures | Worker seconds | Run |\n"
        "|---|---|---|---|---|---|---|\n"
        "| 1 | killed | 1,200 | 0 | 63 inside a save | 1,235 | 1 |\n"
        "| 2 | a \\| b | 7 | 1 |  | 0 | 1 |\n"
        "| 3 | disk full | not run |  |  |  |  |\n"
        "\n## Runs\n\n"
        "1. 2026-11-24, code abc1234, seed 3, 2 workers, 3,720 s. A processor.\n\n"
        "## Exit codes\n"
    ) in text
    assert "/tmp" not in text
    assert "/tmp" not in json.dumps(rows)


def test_the_machine_is_named_without_a_name_or_a_path(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said = reliability.machine()
    assert re.search(r"\d+ cores, \d+ GiB; .+, temporary files on \w+; Python 3\.\d+\.\d+, torch ", said)
    assert os.uname().nodename not in said
    assert "/" not in said.replace("GNU/Linux", "")
    assert f"Python {sys.version.split()[0]}" in said
