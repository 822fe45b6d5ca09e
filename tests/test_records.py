import json
import os
import resource
import signal
import subprocess
import sys
from multiprocessing.pool import ThreadPool

import pytest

from cagsr import records
from cagsr.errors import InputError, NumericsError, StorageError
from cagsr.records import RunDirectory, fingerprint, write_atomically

HASHES = {"config": "c0", "data": "d0"}


def start(path):
    return RunDirectory.create(path, "train:\n  steps: 3\n", HASHES)


def test_a_new_run_says_what_it_is_and_from_what_it_was_made(tmp_path):
    run = start(tmp_path / "runs" / "one")
    about = json.loads((run.path / "run.json").read_text())
    assert about["id"] == run.id
    assert about["hashes"] == HASHES
    assert about["versions"]["python"] == sys.version.split()[0]
    assert {"cagsr", "torch", "transformers"} <= about["versions"].keys()
    assert (run.path / "config.yaml").read_text() == "train:\n  steps: 3\n"
    assert sorted(os.listdir(run.path)) == ["config.yaml", "run.json"]


def test_git_is_told_where_there_is_a_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert records._git_commit() is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("1")
    for command in (["init", "-q"], ["add", "file"], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], check=True)
    commit = records._git_commit()
    assert commit is not None
    assert len(commit) == 40
    (tmp_path / "file").write_text("2")
    assert records._git_commit() == commit + "+"
    monkeypatch.setenv("PATH", "")
    assert records._git_commit() is None


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
    assert all("belongs to" in str(outcome) for outcome in outcomes if not isinstance(outcome, str))
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
    assert sorted(os.listdir(run.path)) == ["config.yaml", "run.json"]


def test_resuming_drops_rows_of_later_steps_and_a_torn_line(tmp_path):
    run = start(tmp_path / "x")
    for step in range(1, 6):
        run.add_metrics(step, {"reward": step / 7})
        run.add_candidates(step, [{"response": "a"}, {"response": "b"}])
    before = (run.path / "metrics.jsonl").read_bytes()
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "rew')
    resumed = RunDirectory.resume(tmp_path / "x", step=3)
    assert resumed == run
    assert (run.path / "metrics.jsonl").read_bytes() == b"\n".join(before.split(b"\n")[:3]) + b"\n"
    assert [row["step"] for row in resumed.rows("candidates.jsonl")] == [1, 1, 2, 2, 3, 3]
    resumed.add_metrics(4, {"reward": 4 / 7})
    resumed.add_metrics(5, {"reward": 5 / 7})
    assert (run.path / "metrics.jsonl").read_bytes() == before


def test_what_changed_since_the_start_is_named(tmp_path):
    start(tmp_path / "x")
    run = RunDirectory.resume(tmp_path / "x", step=0)
    assert run.changed(HASHES) == []
    assert run.changed({"config": "c0", "data": "d1", "model": "m"}) == ["data", "model"]


def test_no_run_and_a_damaged_run_are_told_apart(tmp_path):
    with pytest.raises(InputError, match=r"holds no run to resume: it has no run\.json"):
        RunDirectory.resume(tmp_path, step=0)
    run = start(tmp_path / "x")
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(StorageError, match=r"metrics\.jsonl:2 is damaged: not a row of JSON"):
        RunDirectory.resume(run.path, step=3)
    (run.path / "run.json").write_text('{"id"')
    with pytest.raises(StorageError, match=r"run\.json is damaged"):
        RunDirectory.resume(run.path, step=3)


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
    assert RunDirectory.resume(run.path, step=1).rows() == []
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
