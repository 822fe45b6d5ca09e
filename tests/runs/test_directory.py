import json
import os
import resource
import signal
import subprocess
import sys
from multiprocessing.pool import ThreadPool

import pytest

from cagsr.errors import InputError, NumericsError, StorageError
from cagsr.io.atomic_write import write_atomically
from cagsr.io.provenance import code, git_commit, versions
from cagsr.runs.directory import RunDirectory, fingerprint

IDENTITY = {"train.steps": 3, "data": "d0"}


def start(path):
    return RunDirectory.create(path, "train:\n  steps: 3\n", IDENTITY)


def test_a_new_run_says_what_it_is_and_from_what_it_was_made(tmp_path):
    run = start(tmp_path / "runs" / "one")
    about = json.loads((run.path / "run.json").read_text())
    assert about["id"] == run.id
    assert about["identity"] == IDENTITY
    assert (run.path / "config.yaml").read_text() == "train:\n  steps: 3\n"
    assert sorted(os.listdir(run.path)) == ["config.yaml", "run.json", "run.lock"]


def test_git_is_told_where_there_is_a_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("1")
    for command in (["init", "-q"], ["add", "file"], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], check=True)
    commit = git_commit()
    assert commit is not None
    assert len(commit) == 40
    (tmp_path / "file").write_text("2")
    assert git_commit() == commit + "+"
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None


def test_a_directory_of_another_run_is_refused_by_its_name_and_step(tmp_path):
    run = start(tmp_path / "x")
    run.add_metrics(30, {"reward": 1.0})
    with pytest.raises(InputError) as caught:
        start(tmp_path / "x")
    assert str(caught.value) == (
        f"{tmp_path}/x belongs to run {run.id} (step 30). Use --resume or another directory."
    )


def test_foreign_files_are_left_alone(tmp_path):
    for name in "abcd":
        (tmp_path / name).write_text(name)
    with pytest.raises(InputError, match=r"holds files of no run \(a, b, c, \.\.\.\)\. Choose another"):
        start(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c", "d"]


def test_of_many_starts_in_one_directory_one_wins(tmp_path):
    def attempt(_):
        try:
            return start(tmp_path / "x").id
        except InputError as error:
            return error

    with ThreadPool(7) as pool:
        outcomes = pool.map(attempt, range(7))
    losers = [str(outcome) for outcome in outcomes if not isinstance(outcome, str)]
    assert all("belongs to" in message or "is being written by" in message for message in losers)
    winners = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert winners == [json.loads((tmp_path / "x" / "run.json").read_text())["id"]]


def test_rows_come_back_as_they_went_in_whatever_the_text(tmp_path):
    run = start(tmp_path / "x")
    texts = ["🎈", "שלום \u202eabc", "a\0b", "\ud83d half", "line\u2028end\r\n", "</script>"]
    run.add_candidates(1, [{"response": text, "reward": 0.1} for text in texts])
    run.add_candidates(2, [])
    assert [row["response"] for row in run.rows("candidates.jsonl")] == texts
    assert (run.path / "candidates.jsonl").read_bytes().isascii()


def test_a_number_that_is_not_finite_is_named_and_nothing_is_written(tmp_path):
    run = start(tmp_path / "x")
    with pytest.raises(
        NumericsError, match=r"metrics\.jsonl step 7: kl is nan, signals\.1 is -inf; a record"
    ):
        run.add_metrics(7, {"kl": float("nan"), "signals": [0.0, float("-inf")]})
    with pytest.raises(NumericsError, match=r"summary\.json: systems\.base is inf"):
        run.write_summary({"systems": {"base": float("inf")}})
    assert sorted(os.listdir(run.path)) == ["config.yaml", "run.json", "run.lock"]


def test_resuming_drops_rows_of_later_steps_and_a_torn_line(tmp_path):
    run = start(tmp_path / "x")
    for step in range(1, 6):
        run.add_metrics(step, {"reward": step / 7})
        run.add_candidates(step, [{"response": "a"}, {"response": "b"}])
        run.add_evaluation(step - 1, [{"prompt": "p", "response": "a"}])
    before = (run.path / "metrics.jsonl").read_bytes()
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "rew')
    run.close()
    resumed = RunDirectory.resume(tmp_path / "x")
    assert resumed == run
    resumed.rewind(3)
    assert (run.path / "metrics.jsonl").read_bytes() == b"\n".join(before.split(b"\n")[:3]) + b"\n"
    assert [row["step"] for row in resumed.rows("candidates.jsonl")] == [1, 1, 2, 2, 3, 3]
    assert [row["step"] for row in resumed.rows("evaluations.jsonl")] == [0, 1, 2, 3]
    resumed.add_metrics(4, {"reward": 4 / 7})
    resumed.add_metrics(5, {"reward": 5 / 7})
    assert (run.path / "metrics.jsonl").read_bytes() == before


def test_what_changed_since_the_start_is_named_and_goes_on_only_if_it_is_accepted(tmp_path):
    run = start(tmp_path / "x")
    run.check_identity(IDENTITY)
    before = (run.path / "run.json").read_bytes()
    with pytest.raises(InputError) as caught:
        run.check_identity({"train.steps": 5, "data": "d" * 64, "model": "m"})
    assert str(caught.value) == (
        f"{run.path} was started with something else:\n  train.steps: 5, was 3\n  data: dddddddddddd..., was d0\n"
        "Go on with what it was started with, or pass --accept-changes to go on with this."
    )
    assert (run.path / "run.json").read_bytes() == before
    run.settle({"train.steps": 5})
    about = json.loads((run.path / "run.json").read_text())
    assert about["identity"] == {"train.steps": 5, "data": "d0"}
    assert [(change["was"], change["is"]) for change in about["changes"]] == [
        ({"train.steps": 3}, {"train.steps": 5})
    ]
    run.check_identity({"train.steps": 5})


def test_what_was_not_known_at_the_start_is_kept_from_then_on(tmp_path):
    run = start(tmp_path / "x")
    run.check_identity({"model": "m0"})
    run.settle({"model": "m0", **IDENTITY})
    with pytest.raises(InputError, match="model: m1, was m0"):
        run.check_identity({"model": "m1"})
    assert json.loads((run.path / "run.json").read_text())["changes"] == []


def test_the_code_and_what_it_runs_on_are_named():
    assert versions()["python"] == sys.version.split()[0]
    assert {"torch", "transformers", "accelerate"} <= versions().keys()
    assert len(code()) == 64
    assert code() == code()


def test_a_start_that_was_killed_before_there_was_a_run_leaves_the_place_free(tmp_path):
    for name in ("run.lock", ".run.json.staging"):
        (tmp_path / name).write_text("{")
    assert start(tmp_path).rows() == []


def test_a_run_that_another_process_writes_is_refused_with_who_and_since_when(tmp_path):
    run = start(tmp_path / "x")
    with pytest.raises(InputError, match=rf"is being written by process {os.getpid()} on .* since 20\d\d-"):
        RunDirectory.resume(run.path)
    run.close()
    RunDirectory.resume(run.path).close()


def test_no_run_and_a_damaged_run_are_told_apart(tmp_path):
    with pytest.raises(InputError, match=r"holds no run to resume: it has no run\.json"):
        RunDirectory.resume(tmp_path)
    run = start(tmp_path / "x")
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(StorageError, match=r"metrics\.jsonl:2 is damaged: .*\. Remove that line to go on"):
        run.rewind(3)
    (run.path / "summary.json").write_text("{")
    with pytest.raises(StorageError, match=r"summary\.json is damaged; remove it"):
        run.summary()
    (run.path / "run.json").write_text('{"id"')
    with pytest.raises(StorageError, match=r"run\.json is damaged"):
        RunDirectory.resume(run.path)


@pytest.mark.parametrize("name", ["run.json", "summary.json", "metrics.jsonl"])
def test_what_cannot_be_read_is_said_to_be_and_not_that_it_cannot_be_written(tmp_path, name):
    run = start(tmp_path / "x")
    run.close()
    (run.path / name).unlink(missing_ok=True)
    (run.path / name).mkdir()  # a user who may read everything cannot be refused a file
    read = {
        "run.json": lambda: RunDirectory.resume(run.path),
        "summary.json": run.summary,
        "metrics.jsonl": run.rows,
    }
    with pytest.raises(StorageError) as caught:
        read[name]()
    assert str(caught.value) == f"{run.path / name} cannot be read: Is a directory"


def test_a_full_disk_is_a_storage_error_and_costs_no_earlier_file(tmp_path):
    run = start(tmp_path / "x")
    run.write_summary({"a": 1})
    before = (run.path / "summary.json").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A file that may not grow beyond 100 bytes stands in for the disk; Python then gets an OSError.
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"summary\.json cannot be written: File too large"):
            run.write_summary({"a": "x" * 1000})
        with pytest.raises(StorageError, match=r"metrics\.jsonl cannot be written"):
            run.add_metrics(1, {"a": "x" * 1000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (run.path / "summary.json").read_bytes() == before
    assert ".summary.json.staging" not in os.listdir(run.path)
    # What was torn by the full disk is gone after a resume.
    run.rewind(1)
    assert run.rows() == []
    assert (run.path / "metrics.jsonl").read_bytes() == b""


def test_no_space_left_says_how_to_go_on(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        StorageError, match=r"No space left on device; free some space and continue with --resu"
    ):
        write_atomically(tmp_path / "a", "text")
    assert os.listdir(tmp_path) == []


def test_a_fingerprint_tells_texts_their_order_and_their_borders_apart():
    assert fingerprint(["ab", "c"]) == fingerprint(iter(["ab", "c"]))
    different = [["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"], ["ab", "c", ""], ["\ud83d"], []]
    assert len({fingerprint(texts) for texts in different}) == len(different)


def test_a_start_that_failed_is_discarded_and_what_was_recorded_is_not(tmp_path):
    run = start(tmp_path / "x")
    run.discard()
    assert os.listdir(run.path) == ["run.lock"]
    run.close()
    again = start(tmp_path / "x")
    again.add_metrics(1, {"loss": 0.5})
    again.discard()
    assert sorted(os.listdir(again.path)) == ["config.yaml", "metrics.jsonl", "run.json", "run.lock"]
    again.close()
