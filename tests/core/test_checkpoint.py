"""Checkpoints: whole or not there, the newest few kept, and all that a continuation needs inside."""

import json

import pytest
import torch

import tiny
from cagsr import checkpoint
from cagsr.errors import StorageError


def moved(name="llama", critic=True):
    """A step after one update, so that weights, optimizer and schedule have left their start."""
    step = tiny.make_step(tiny.policy(name, critic=critic))
    step.update(step.collect(tiny.prompts(step.policy), seed=0).batches)
    return step


@pytest.mark.parametrize("name", ["t5", "bart", "llama"])
def test_trap_27_weights_optimizer_schedule_and_random_numbers_come_back(name, tmp_path):
    step = moved(name)
    torch.manual_seed(5)
    path = checkpoint.save(step.accelerator, tmp_path, 7, {"kl_coefficient": 0.3}, keep=2)
    expected = torch.rand(3)
    fresh = tiny.make_step(tiny.policy(name, critic=True))
    assert checkpoint.load(fresh.accelerator, path) == {"kl_coefficient": 0.3, "step": 7}
    assert torch.equal(torch.rand(3), expected)
    for key, value in step.policy.state_dict().items():
        assert torch.equal(fresh.policy.state_dict()[key], value), key
    assert fresh.scheduler.state_dict() == step.scheduler.state_dict()
    assert fresh.scheduler.last_epoch > 0
    saved, loaded = step.optimizer.state_dict(), fresh.optimizer.state_dict()
    assert saved["state"].keys() == loaded["state"].keys()
    assert saved["state"]
    for key, entry in saved["state"].items():
        for name, value in entry.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(loaded["state"][key][name]))
    # Tied weights are still one tensor.
    embedding, head = fresh.policy.model.get_input_embeddings(), fresh.policy.model.get_output_embeddings()
    assert embedding.weight is head.weight


def test_the_newest_checkpoints_are_kept(tmp_path):
    step = moved(critic=False)
    for number in (2, 10, 4):
        checkpoint.save(step.accelerator, tmp_path, number, {}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000004", "step-000010"]
    assert checkpoint.newest(tmp_path).name == "step-000010"


def test_trap_28_half_a_save_has_no_name_to_be_found_by(tmp_path, monkeypatch):
    step = moved(critic=False)
    checkpoint.save(step.accelerator, tmp_path, 2, {}, keep=2)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(step.accelerator, "save_state", full)
    with pytest.raises(StorageError, match=r"step-000004 could not be written: .*No space left.*untouched"):
        checkpoint.save(step.accelerator, tmp_path, 4, {}, keep=1)
    assert checkpoint.newest(tmp_path).name == "step-000002"
    assert json.loads((tmp_path / "step-000002" / "cagsr.json").read_text()) == {"step": 2}
    # A directory without our own file, which is written last, is no checkpoint.
    (tmp_path / "step-000009").mkdir()
    assert checkpoint.newest(tmp_path).name == "step-000002"


def test_before_the_first_checkpoint_there_is_none(tmp_path):
    assert checkpoint.newest(tmp_path) is None
