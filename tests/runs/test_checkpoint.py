"""Checkpoints: whole or not there, believed only when they are intact, and all that a continuation needs inside."""

import json
import resource
import signal

import pytest
import torch
from safetensors.torch import load_file

import tiny
from cagsr.errors import InputError, StorageError
from cagsr.io import manifest as seal
from cagsr.models.lora import with_lora
from cagsr.runs.checkpoint import Checkpoints, forward


def moved(name="llama", critic=True, lora=False):
    """A step after one update, so that weights, optimizer and schedule have left their start."""
    policy = tiny.policy(name, critic=critic)
    if lora:
        torch.manual_seed(3)
        with_lora(policy, r=2, alpha=4, target_modules="all-linear")
    step = tiny.make_step(policy)
    step.update(step.collect(tiny.prompts(step.policy), seed=0).batches)
    return step


def kept(root):
    return sorted(path.name for path in root.iterdir())


def checkpoints(step, root, **settings):
    said = []
    made = Checkpoints(step.accelerator, root, settings.pop("run", "r0"), say=said.append, **settings)
    return made, said


@pytest.mark.parametrize("name", ["t5", "bart", "llama"])
def test_trap_27_weights_optimizer_and_random_numbers_come_back(name, tmp_path):
    step = moved(name)
    torch.manual_seed(5)
    path = checkpoints(step, tmp_path)[0].save(7, {"kl_coefficient": 0.3})
    expected = torch.rand(3)
    fresh = tiny.make_step(tiny.policy(name, critic=True))
    again, said = checkpoints(fresh, tmp_path)
    assert again.newest() == path
    assert again.load(path) == {"kl_coefficient": 0.3, "step": 7, "update": 0}
    assert said == []
    assert torch.equal(torch.rand(3), expected)
    for key, value in step.policy.state_dict().items():
        assert torch.equal(fresh.policy.state_dict()[key], value), key
    saved, loaded = step.optimizer.state_dict(), fresh.optimizer.state_dict()
    assert saved["state"].keys() == loaded["state"].keys()
    assert saved["state"]
    for key, entry in saved["state"].items():
        for name, value in entry.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(loaded["state"][key][name]))
    # Tied weights are still one tensor.
    embedding, head = fresh.policy.model.get_input_embeddings(), fresh.policy.model.get_output_embeddings()
    assert embedding.weight is head.weight


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_of_an_adapter_the_adapter_alone_is_kept_and_comes_back(name, tmp_path):
    step = moved(name, critic=True, lora=True)
    path = checkpoints(step, tmp_path)[0].save(1, {})
    held = load_file(path / "model.safetensors")
    assert held
    assert all("lora_" in key or key.startswith("value_head") for key in held)
    torch.manual_seed(99)
    fresh = tiny.policy(name, critic=True)
    with_lora(fresh, r=2, alpha=4, target_modules="all-linear")
    other = tiny.make_step(fresh)
    assert any(not torch.equal(other.policy.state_dict()[key], value) for key, value in held.items())
    checkpoints(other, tmp_path)[0].load(path)
    for key, value in step.policy.state_dict().items():
        assert torch.equal(other.policy.state_dict()[key], value), key


def test_the_newest_checkpoints_are_kept(tmp_path):
    step = moved(critic=False)
    saves, _ = checkpoints(step, tmp_path, keep=2)
    for number in (2, 4, 10):
        saves.save(number, {})
    assert kept(tmp_path) == ["step-000004", "step-000010"]
    assert saves.newest().name == "step-000010"


def test_a_checkpoint_inside_a_step_comes_after_that_step(tmp_path):
    step = moved(critic=False)
    saves, _ = checkpoints(step, tmp_path, keep=3)
    saves.save(3, {})
    saves.save(3, {"x": 1}, update=11, buffer=lambda directory: (directory / "mine").write_text("rollout"))
    assert saves.newest().name == "step-000003-update-0011"
    assert (saves.newest() / "mine").read_text() == "rollout"
    assert saves.load(saves.newest()) == {"x": 1, "step": 3, "update": 11}
    saves.save(4, {})
    assert saves.newest().name == "step-000004"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: (path / "optimizer.bin").unlink(), "optimizer.bin is missing"),
        (lambda path: (path / "random_states_0.pkl").unlink(), "random_states_0.pkl is missing"),
        (lambda path: (path / "model.safetensors").write_bytes(b"x"), "model.safetensors has 1 bytes, not"),
        (lambda path: (path / "MANIFEST.json").unlink(), "it has no MANIFEST.json"),
        (lambda path: (path / "cagsr.json").write_text("{}"), "cagsr.json has 2 bytes"),
    ],
)
def test_trap_28_a_damaged_checkpoint_is_left_out_by_name_and_the_one_before_it_taken(
    tmp_path, damage, reason
):
    step = moved(critic=False)
    saves, said = checkpoints(step, tmp_path)
    good = saves.save(2, {})
    damage(saves.save(4, {}))
    assert saves.newest() == good
    assert len(said) == 1
    assert said[0].startswith(f"checkpoint step-000004 is left out: {reason}")


def test_with_nothing_but_damage_a_run_does_not_begin_again_by_itself(tmp_path):
    step = moved(critic=False)
    saves, said = checkpoints(step, tmp_path)
    for number in (2, 4):
        (saves.save(number, {}) / "optimizer.bin").write_bytes(b"")
    with pytest.raises(
        StorageError, match=r"no checkpoint is as it was written \(step-000004, step-000002\)\. Bring"
    ):
        saves.newest()
    assert len(said) == 2


def test_rates_are_those_of_the_config_and_the_schedule_is_where_it_was(tmp_path):
    step = moved()
    path = checkpoints(step, tmp_path)[0].save(1, {})
    other = tiny.make_step(tiny.policy("llama", critic=True), learning_rate=0.5)
    checkpoints(other, tmp_path)[0].load(path)
    forward(other.scheduler, step.scheduler.last_epoch)
    assert step.scheduler.last_epoch == 1
    assert other.scheduler.get_last_lr() == [0.5 * 0.98]
    assert [group["lr"] for group in other.optimizer.param_groups] == [0.5 * 0.98]
    same = tiny.make_step(tiny.policy("llama", critic=True))
    checkpoints(same, tmp_path)[0].load(path)
    forward(same.scheduler, step.scheduler.last_epoch)
    assert same.optimizer.param_groups[0]["lr"] == step.optimizer.param_groups[0]["lr"]
    for scheduler in (same.scheduler, step.scheduler):
        scheduler.optimizer.step()
        scheduler.step()
    assert same.scheduler.get_last_lr() == step.scheduler.get_last_lr()


def test_a_checkpoint_of_another_shape_is_refused_by_name(tmp_path):
    path = checkpoints(moved(critic=False), tmp_path)[0].save(1, {})
    other = tiny.make_step(tiny.policy("llama", critic=True))
    with pytest.raises(InputError, match=r"step-000001 does not fit the model as it is configured now \("):
        checkpoints(other, tmp_path)[0].load(path)


def test_an_adapter_that_is_not_in_the_checkpoint_is_never_left_at_random(tmp_path):
    step = moved(critic=False, lora=True)
    path = checkpoints(step, tmp_path)[0].save(1, {})
    policy = tiny.policy("llama", critic=True)
    with_lora(policy, r=2, alpha=4, target_modules="all-linear")
    with pytest.raises(InputError, match=r"does not fit the model .* \(it has no value_head"):
        checkpoints(tiny.make_step(policy), tmp_path)[0].load(path)


def test_what_was_left_out_makes_room_when_its_step_comes_again_and_is_not_lost(tmp_path):
    step = moved(critic=False)
    saves, _ = checkpoints(step, tmp_path, keep=1)
    saves.save(2, {})
    (saves.save(4, {}) / "optimizer.bin").write_bytes(b"damaged")
    assert saves.save(3, {}).name == "step-000003"
    # A later one that is damaged counts for nothing: the good one stays although only one is kept.
    assert kept(tmp_path) == ["step-000003", "step-000004"]
    saves.save(4, {})
    assert kept(tmp_path) == ["aside-step-000004", "step-000004"]
    assert (tmp_path / "aside-step-000004" / "optimizer.bin").read_bytes() == b"damaged"
    assert saves.newest().name == "step-000004"


def test_another_runs_checkpoints_are_neither_believed_nor_removed(tmp_path):
    step = moved(critic=False)
    theirs, _ = checkpoints(step, tmp_path, run="theirs")
    for number in (1, 2, 9):
        theirs.save(number, {})
    mine, said = checkpoints(step, tmp_path, run="mine", keep=1)
    assert mine.newest() is None
    assert "it is of run theirs, and this is mine" in said[0]
    for number in (3, 4):
        mine.save(number, {})
    assert kept(tmp_path) == ["step-000002", "step-000004", "step-000009"]
    assert mine.newest().name == "step-000004"


def test_files_of_somebody_in_a_checkpoint_that_is_pruned_stay(tmp_path):
    step = moved(critic=False)
    saves, _ = checkpoints(step, tmp_path, keep=1)
    (saves.save(2, {}) / "notes.txt").write_text("mine")
    saves.save(4, {})
    assert [path.name for path in (tmp_path / "step-000002").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("limit", [1_000, 40_000])
def test_trap_28_a_disk_that_is_full_costs_no_earlier_checkpoint_and_leaves_nothing_behind(tmp_path, limit):
    step = moved(critic=False)
    saves, _ = checkpoints(step, tmp_path)
    good = saves.save(2, {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(
            StorageError, match=r"step-000004 cannot be written: .*The earlier checkpoints are unt"
        ):
            saves.save(4, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert kept(tmp_path) == ["step-000002"]
    assert seal.damage(good) is None
    assert saves.save(4, {}).name == "step-000004"


def test_half_a_save_has_no_name_to_be_found_by(tmp_path, monkeypatch):
    step = moved(critic=False)
    saves, _ = checkpoints(step, tmp_path)
    saves.save(2, {})

    class Killed(BaseException):
        pass

    def killed(*_, **__):
        raise Killed

    monkeypatch.setattr(seal, "seal", killed)
    with pytest.raises(Killed):
        saves.save(4, {})
    assert kept(tmp_path) == [".staging-r0", "step-000002"]
    assert saves.newest().name == "step-000002"
    monkeypatch.undo()
    saves.save(4, {})
    assert kept(tmp_path) == ["step-000002", "step-000004"]


def test_a_process_that_there_was_none_of_goes_on_from_the_same_weights(tmp_path, monkeypatch):
    step = moved(critic=False)
    saves, _ = checkpoints(step, tmp_path)
    path, saved = saves.save(2, {}), tiny.weights_of(step.policy)
    with torch.no_grad():
        next(step.policy.parameters()).add_(1)
    monkeypatch.setattr(type(step.accelerator), "process_index", 1)
    saves.load(path)
    assert all(torch.equal(weight, saved[name]) for name, weight in step.policy.state_dict().items())


def test_before_the_first_checkpoint_there_is_none(tmp_path):
    saves, said = checkpoints(moved(critic=False), tmp_path / "none")
    assert saves.newest() is None
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "step-12").mkdir()
    assert saves.newest() is None
    assert said == []


def test_the_state_is_json_of_this_step(tmp_path):
    path = checkpoints(moved(critic=False), tmp_path)[0].save(2, {"history": [0.1]})
    assert json.loads((path / "cagsr.json").read_text()) == {"history": [0.1], "step": 2, "update": 0}


def test_nothing_in_a_checkpoint_is_read_back_with_code_allowed(tmp_path):
    """Accelerate reads what is registered with it (custom_checkpoint_N.pkl) so; we register nothing."""
    path = checkpoints(moved(), tmp_path)[0].save(2, {})
    expected = {"cagsr.json", "model.safetensors", "optimizer.bin", "random_states_0.pkl"}
    assert set(seal.manifest(path)["files"]) == expected
