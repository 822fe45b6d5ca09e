"""Standard streams that are closed, broken, full or narrow stop no work, and the exit code is that of the work."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import runs

SMALL = (
    "data.task=slots",
    "data.count=11",
    "data.evaluation_count=5",
    "train.steps=2",
    "train.prompts_per_step=2",
    "train.micro_batch=6",
    "sampling.candidates=3",
    "sampling.max_new_tokens=7",
    "reward.preset=coverage",
)


def without_reader(number: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, number)


def full(number: int) -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), number)


def closed(*numbers: int) -> None:
    for number in numbers:
        os.close(number)
        name = ("stdin", "stdout", "stderr")[number]
        setattr(sys, name, None)
        setattr(sys, f"__{name}__", None)


STREAMS = {
    "output without a reader": partial(without_reader, 1),
    "errors without a reader": partial(without_reader, 2),
    "a full disk": partial(full, 1),
    "output closed": partial(closed, 1),
    "errors closed": partial(closed, 2),
    "all closed": partial(closed, 0, 1, 2),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return runs.models(tmp_path_factory.mktemp("streams"))


@pytest.mark.parametrize("fault", STREAMS)
def test_a_run_goes_on_when_nobody_reads_what_it_says(place, fault):
    directory = fault.replace(" ", "-")
    arguments = ["train", *SMALL, "model.name=llama", f"run.directory={directory}"]
    run = runs.start(arguments, place, before=STREAMS[fault])
    assert run.wait() == 0, run.err
    assert run.err == ""
    assert (place / directory / "model" / "model.safetensors").is_file()
    assert (place / directory / "summary.json").is_file()
    # A file that was opened while a stream was closed must not have got its number.
    assert "step 1/2" not in (place / directory / "metrics.jsonl").read_text()


@pytest.mark.parametrize("fault", STREAMS)
def test_a_mistake_keeps_its_exit_code(place, fault):
    run = runs.start(["train", "train.stepz=1"], place, before=STREAMS[fault])
    assert run.wait() == 2
    assert "Traceback" not in run.err


def test_a_model_is_examined_with_its_output_closed(place):
    assert runs.start(["doctor", "llama"], place, before=partial(closed, 1)).wait() == 0


@pytest.mark.parametrize("arguments", [["reference"], ["doctor", "llama", "--json"]])
def test_a_result_that_a_full_disk_does_not_take_is_an_error(place, arguments):
    run = runs.start(arguments, place, before=partial(full, 1))
    assert run.wait() == 4
    assert "error: standard output: No space left on device; the result is not written whole" in run.err
    assert "Traceback" not in run.err
    assert runs.start(arguments, place, before=partial(without_reader, 1)).wait() == 0


def test_a_narrow_encoding_gets_escapes(place, tmp_path):
    (tmp_path / "llama").symlink_to(place / "llama")
    named = tmp_path / "modèle"
    named.symlink_to(place / "llama")
    run = runs.start(["doctor", "modèle"], tmp_path, before=narrow)
    assert run.wait() == 0, run.err
    assert "name: mod\\xe8le" in run.out


def narrow() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="ascii", errors="strict")


@pytest.mark.parametrize(
    "command", ["reference | head -1", "reference >&- 2>&-", "reference <&- >&-", "--help | true"]
)
def test_a_shell_sees_quiet_and_zero(command, tmp_path):
    typed = f"set -o pipefail; {sys.executable} -u -m cagsr {command}"
    done = subprocess.run(
        ["bash", "-c", typed], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
