"""The proofs of promises 1 to 7 and 16 at a small count, and that each of them can fail.

The faults that would make them fail are planted in the runs that a proof starts: processes of their own, so each
test says which of the program's habits it takes away there.
"""

import os
from collections import Counter
from functools import partial
from pathlib import Path
from random import Random

import pytest

import cases
import corruptions
import dirty_directories
import disk_full
import kills
import non_finite
import resumed_identity
import runs
import sealing
import slow_stops
import stopped

PROOFS = {
    kills: 3,
    corruptions: 5,
    disk_full: 2,
    stopped: 3,
    slow_stops: 1,
    non_finite: 4,
    dirty_directories: 4,
    resumed_identity: 2,
}
INJECTED = (
    "a signal's value",
    "a log-probability of the policy",
    "a gradient",
    "the weights after a step",
)
ONE = "GRPO, T5"
FEW = (ONE, "PPO, Llama, LoRA", "SFT, T5")
"""An encoder-decoder and a causal model, GRPO and PPO, all weights and an adapter, supervised training; `make prove`
takes all cases. What each comes to undisturbed must be known first, which takes as long as breaking it."""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in {*cases.CASES} - {*FEW}:
        monkeypatch.delitem(cases.CASES, name)
    for proof in (corruptions, dirty_directories, disk_full, non_finite, stopped):
        monkeypatch.setattr(proof, "OF", [name for name in proof.OF if name in FEW])


def counted(proof, count: int, seed: int = 5) -> tuple[list[str], Counter]:
    """The failures of a proof, which advanced once an item, and what it summed."""
    items, sums = [], Counter()

    def advance(**numbers):
        items.append(numbers)
        sums.update(numbers)

    failures = proof.prove(count, Random(seed), advance)
    if not failures:
        assert len(items) == min(count, proof.COUNT)
    return failures, sums


@pytest.mark.parametrize("proof", PROOFS, ids=lambda proof: proof.__name__)
def test_the_promise_holds_at_a_small_count(proof, monkeypatch):
    # One stop, and one that need not be slept up to for a minute; `make prove` has it come with any pass of a run.
    monkeypatch.setattr(slow_stops, "PASSES", 20)
    # One injection of each part of a step; every kind stops within this process in tests/training and tests/rewards.
    monkeypatch.setattr(non_finite, "KINDS", {kind: non_finite.KINDS[kind] for kind in INJECTED})
    failures, sums = counted(proof, PROOFS[proof])
    assert failures == []
    if hasattr(proof, "figures"):
        assert proof.figures(sums)


def test_sealing_is_measured_and_found_when_it_costs_too_much(monkeypatch):
    monkeypatch.setattr(
        sealing, "SETTINGS", (*cases.TASK, *cases.SIZE, "model.name=t5", "algorithm.name=grpo")
    )
    monkeypatch.setattr(sealing, "MOST", 0.0)
    runs.models(Path.cwd())
    failures, sums = counted(sealing, 2)
    assert failures[0].startswith("sealing took")
    assert 0 < sums["seal"] < sums["whole"]


# What happens when the program forgets something ------------------------------------------------------------


def sabotage(*plants):
    """Called in a run before the command: the proof's own plant, and what is taken away from the program."""
    for plant in plants:
        if plant is not None:
            plant()


def sabotaged(monkeypatch, *plants):
    """Every run that a proof starts from now on is sabotaged."""
    start = runs.start

    def started(arguments, cwd, env=None, before=None):
        return start(arguments, cwd, env, partial(sabotage, *plants, before))

    monkeypatch.setattr(runs, "start", started)


def no_optimizer():
    """Going on forgets the moments of the optimizer."""
    from cagsr.runs.checkpoint import Checkpoints

    load = Checkpoints.load

    def forgetful(checkpoints, path):
        state = load(checkpoints, path)
        for optimizer in checkpoints.accelerator._optimizers:
            optimizer.state.clear()
        return state

    Checkpoints.load = forgetful


def no_buffer():
    """Going on inside a step samples it again instead of taking what was collected."""
    from cagsr.training import loop

    assert loop.load_buffer
    loop.load_buffer = lambda *_: (_ for _ in ()).throw(RuntimeError("no buffer"))


def no_verification():
    from cagsr.io import manifest as seal

    assert seal.damage
    seal.damage = lambda directory: None


def no_storage_error():
    """What the libraries raise where a disk is full stays as it is."""
    from contextlib import nullcontext

    from cagsr.io import atomic_write as storage
    from cagsr.models import load
    from cagsr.runs import checkpoint
    from cagsr.runs import directory as records

    for module in (checkpoint, records, storage, load):
        assert module.storing
        module.storing = lambda path: nullcontext()


def no_stop():
    from cagsr.io.shutdown import Stops

    Stops.requested = lambda stops: 0


def no_finite_check():
    from cagsr.runs.checkpoint import Checkpoints
    from cagsr.training.step import Step

    Step._check_finite = lambda step, *given: None
    Checkpoints._check_weights = lambda checkpoints, step: None


def no_respect():
    from cagsr.runs.directory import RunDirectory

    RunDirectory.refuse_used = staticmethod(lambda path: None)


def no_identity():
    from cagsr.runs.directory import RunDirectory

    RunDirectory.check_identity = lambda run, identity: None


def of_one_case(monkeypatch, proof):
    """Fewer runs: the proof takes a single case."""
    if proof is kills:
        monkeypatch.setattr(kills, "CASES", {ONE: cases.CASES[ONE]})
    else:
        monkeypatch.setattr(proof, "OF", [ONE])


def test_a_kill_whose_continuation_forgets_the_optimizer_is_found(monkeypatch):
    of_one_case(monkeypatch, kills)
    monkeypatch.setattr(kills, "INSIDE", 1.0)
    sabotaged(monkeypatch, no_optimizer)
    failures, _ = counted(kills, 4)
    assert any("not the same: " in failure for failure in failures), failures


def test_a_stop_inside_a_step_without_its_rollout_is_found(monkeypatch):
    of_one_case(monkeypatch, stopped)
    monkeypatch.setattr(stopped, "PHASES", {"update": stopped.PHASES["update"]})
    sabotaged(monkeypatch, no_buffer)
    failures, _ = counted(stopped, 3)
    assert any("going on ended with 1" in failure for failure in failures), failures


def test_a_stop_that_is_not_heard_is_found(monkeypatch):
    of_one_case(monkeypatch, stopped)
    monkeypatch.setattr(stopped, "PHASES", {"rollout": stopped.PHASES["rollout"]})
    sabotaged(monkeypatch, no_stop)
    failures, _ = counted(stopped, 2)
    assert any("not stopped: the signal came in step" in failure for failure in failures), failures


def test_a_stop_that_waits_for_a_long_evaluation_is_found(monkeypatch):
    monkeypatch.setattr(slow_stops, "LIMIT_OF_ANSWER", 2.0)
    monkeypatch.setattr(slow_stops, "PASSES", 20)
    failures, _ = counted(slow_stops, 1)
    assert any("answered after" in failure for failure in failures), failures


def test_a_checkpoint_that_is_loaded_unverified_is_found(monkeypatch):
    of_one_case(monkeypatch, corruptions)
    monkeypatch.setattr(corruptions, "WHOLE_RUN_EVERY", 1)
    monkeypatch.setattr(corruptions, "_answer", lambda run, spared: "")
    sabotaged(monkeypatch, no_verification)
    failures, _ = counted(corruptions, 3)
    assert any("going on" in failure for failure in failures), failures


def test_a_full_disk_that_ends_in_a_bug_is_found(monkeypatch):
    of_one_case(monkeypatch, disk_full)
    monkeypatch.setattr(disk_full, "MOST", {"pages": 60, "files": 20, "bytes": 40_000})
    sabotaged(monkeypatch, no_storage_error)
    failures, _ = counted(disk_full, 2)
    assert any("ended with 1" in failure for failure in failures), failures


def test_bad_numbers_that_are_trained_on_are_found(monkeypatch):
    of_one_case(monkeypatch, non_finite)
    monkeypatch.setattr(non_finite, "KINDS", {"a gradient": non_finite.KINDS["a gradient"]})
    sabotaged(monkeypatch, no_finite_check)
    failures, _ = counted(non_finite, 1)
    assert failures


@pytest.mark.parametrize(
    ("proof", "plant", "count"),
    [(dirty_directories, no_respect, 3), (resumed_identity, no_identity, 1)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_place_or_an_identity_that_is_not_checked_is_found(proof, plant, count, monkeypatch):
    sabotaged(monkeypatch, plant)
    failures, _ = counted(proof, count)
    assert failures


def test_a_corruption_that_is_believed_is_found(monkeypatch):
    monkeypatch.setattr("cagsr.io.manifest.damage", lambda directory: None)
    failures, _ = counted(corruptions, 4)
    assert any("is taken, not step-" in failure for failure in failures)


def test_a_kill_inside_a_save_really_is_one(monkeypatch):
    workshop = cases.Workshop.open()
    cwd = workshop.fresh(1)
    case = cases.CASES["GRPO, T5"]
    run = runs.start(case.arguments(False), cwd, before=partial(kills.kill_inside_a_save, 0.2, 0.9))
    assert run.wait() == -9
    assert (cwd / kills.MARK).exists()
    assert any(path.name.startswith(".staging-") for path in (cwd / "run" / "checkpoints").iterdir())


def test_every_way_of_damage_changes_the_file_it_says(tmp_path):
    seen = set()
    for seed in range(60):
        directory = tmp_path / str(seed)
        directory.mkdir()
        for number, size in enumerate((5, 700, 3000)):
            (directory / f"file-{number}").write_bytes(Random(number).randbytes(size))
        before = {path.name: path.read_bytes() for path in directory.iterdir()}
        kind, name = corruptions.damage(directory, Random(seed)).split(" of ")
        after = {path.name: path.read_bytes() for path in directory.iterdir()}
        assert after.get(name) != before[name], kind
        seen.add(kind)
    assert len(seen) == 7


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting is root's")
def test_a_small_disk_is_really_full_where_it_says(tmp_path):
    if not disk_full.may_mount():
        pytest.skip("no mounts here")
    with disk_full.small_disk(tmp_path / "disk"):
        disk_full.take("pages", 3)
        with pytest.raises(OSError, match="No space left"):
            Path("disk/mine").write_bytes(bytes(4 * disk_full.PAGE))
        Path("disk/mine").unlink()
        Path("disk/mine").write_bytes(bytes(2 * disk_full.PAGE))
    with disk_full.small_disk(tmp_path / "disk-2"):
        pass
