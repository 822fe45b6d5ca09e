"""Checkpoints in shards: several files, read back to the bit; what does not fit is refused, and failures are raised."""

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import filesystem

from cagsr.distributed import shard_files
from cagsr.errors import StorageError

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled"
)  # one process saves alone here


def model(width: int = 5) -> tuple[nn.Module, torch.optim.Optimizer]:
    made = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))
    made[1].bias.requires_grad_(False)
    return made, torch.optim.AdamW(filter(lambda weight: weight.requires_grad, made.parameters()))


@pytest.fixture
def saved(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_files, "FILE", 64)
    trained, optimizer = model()
    trained(torch.randn(7, 3)).square().mean().backward()
    optimizer.step()
    shard_files.save_shards(trained, optimizer, tmp_path)
    return trained, optimizer, tmp_path


def test_weights_and_moments_come_back_to_the_bit_from_several_files(saved):
    trained, optimizer, place = saved
    # 15 + 5 + 10 weights, twice as many moments and 3 step counts: 372 bytes, and a new file for what begins past 64.
    assert len(list((place / "shards").iterdir())) == 6
    other, fresh = model()
    shard_files.load_shards(other, fresh, place)
    expected = {name: weight for name, weight in trained.named_parameters() if weight.requires_grad}
    for name, weight in expected.items():
        loaded = other.get_parameter(name)
        assert torch.equal(loaded, weight)
        assert fresh.state[loaded].keys() == {"step", "exp_avg", "exp_avg_sq"}
        for key, value in optimizer.state[weight].items():
            assert torch.equal(fresh.state[loaded][key], value)
    found = shard_files.weights_in(place)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_a_checkpoint_of_another_model_is_refused(saved):
    *_, place = saved
    with pytest.raises(ValueError, match=r"it has no 0.weight of shape \(7, 3\)"):
        shard_files.load_shards(*model(width=7), place)
    grown = nn.Sequential(*model()[0], nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"of another model: weight\.2\.bias, weight\.2\.weight"):
        shard_files.load_shards(grown, torch.optim.AdamW(grown.parameters()), place)


def test_what_failed_is_raised_and_not_torchs_account_of_it(saved, monkeypatch):
    trained, optimizer, place = saved

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(filesystem, "_write_item", full)
    with pytest.raises(OSError, match="No space left on device"):
        shard_files.save_shards(trained, optimizer, place / "again")


def test_weights_that_are_gathered_in_the_middle_of_a_pass_are_not_saved_without_their_moments(saved):
    trained, optimizer, place = saved
    # Other objects, as FSDP2 puts them in the place of its shards.
    trained[0].weight = nn.Parameter(trained[0].weight.detach().clone())
    with pytest.raises(
        StorageError, match="1 weights are gathered in the middle of a pass; save between two"
    ):
        shard_files.save_shards(trained, optimizer, place / "again")
    assert not (place / "again").exists()


def test_a_file_that_is_shown_in_part_is_waited_for(saved, monkeypatch):
    trained, optimizer, place = saved
    slow = []

    def show(_: float) -> None:
        file, content = slow.pop()
        file.write_bytes(content)

    written = shard_files.dcp.save

    def cut(*given, **settings):
        written(*given, **settings)
        (file, *_) = sorted((place / "again/shards").iterdir())
        slow.append((file, file.read_bytes()))
        file.write_bytes(file.read_bytes()[:-3])

    monkeypatch.setattr(shard_files.dcp, "save", cut)
    monkeypatch.setattr(shard_files.time, "sleep", show)
    shard_files.save_shards(trained, optimizer, place / "again")
    assert not slow


def test_a_part_that_is_missing_is_said_when_it_is_written_and_when_it_is_read(saved, monkeypatch):
    trained, optimizer, place = saved
    whole = shard_files.HuggingFaceStorageReader.read_metadata

    def partly(reader):
        found = whole(reader)
        del found.state_dict_metadata["weight.0.weight"].chunks[0]
        return found

    monkeypatch.setattr(shard_files.HuggingFaceStorageReader, "read_metadata", partly)
    monkeypatch.setattr(shard_files, "PATIENCE", 1)
    with pytest.raises(ValueError, match=r"parts of weight\.0\.weight are missing"):
        shard_files.load_shards(*model(), place)
    with pytest.raises(
        StorageError, match=r"only some of the files that .*; run.directory must be in a file"
    ):
        shard_files.save_shards(trained, optimizer, place / "again")
