"""Two processes do what one does: the same groups, the same numbers, the same weights."""

import os
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import torch
from accelerate import Accelerator

import tiny

# --cpu would run a single process, whatever --num_processes says; the script itself asks for the CPU.
LAUNCH = (
    "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
    "--dynamo_backend no --main_process_port 0"
)


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    path = tmp_path_factory.mktemp("processes") / "found.pt"
    command = [sys.executable, "-m", *LAUNCH.split(), processes.__file__, str(path)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(processes.__file__).parents[1]),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(path, weights_only=True)
    assert found["processes"] == 2
    return found


@pytest.mark.parametrize("name", sorted(processes.RUNS))
def test_trap_19_two_processes_write_the_same_groups_and_end_with_the_same_weights(name, by_two):
    alone, together = processes.run(name, Accelerator(cpu=True)), by_two[name]
    assert together["responses"] == alone["responses"]
    for row, expected in zip(together["rows"], alone["rows"], strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-5)
    start, moved = tiny.weights_of(processes.make_policy(name)), 0.0
    for key, value in alone["weights"].items():
        torch.testing.assert_close(together["weights"][key], value, rtol=1e-5, atol=1e-5, msg=key)
        moved = max(moved, float((start[key] - value).abs().max()))
    assert moved > 1e-3
