"""What a run's identity says of models on the hub: a run that is resumed sees them move."""

import json
from types import SimpleNamespace

import pytest

from cagsr.config import Config
from cagsr.config.schema import Term
from cagsr.errors import InputError
from cagsr.runs.directory import RunDirectory
from cagsr.runs.identity import of_start
from hub_cache import COMMITS, HubCache

ONE_PROCESS = SimpleNamespace(num_processes=1, device=SimpleNamespace(type="cpu"), is_fsdp2=False)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    (tmp_path / "adapter").mkdir()
    adapter = {"base_model_name_or_path": "some/base"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(adapter))
    hub = HubCache(tmp_path / "hub", monkeypatch)
    for name in ("some/base", "some/judge"):
        hub.add(name, tmp_path / "adapter")
    return hub


def identity(name, *terms):
    return of_start(
        Config.load(None, ["data.task=slots", f"model.name={name}"]), ("model",), ONE_PROCESS, terms
    )


def test_a_model_that_moves_on_the_hub_is_another_one(hub):
    assert identity("some/base")["model"] == COMMITS[0]
    hub.move("some/base", COMMITS[1])
    assert identity("some/base")["model"] == COMMITS[1]


def test_the_base_of_an_adapter_that_moves_on_the_hub_is_another_one(hub, tmp_path):
    name = str(tmp_path / "adapter")
    before = identity(name)
    hub.move("some/base", COMMITS[1])
    after = identity(name)
    changed = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
    assert changed == {"base of the adapter": COMMITS}


def test_a_reward_model_that_moves_on_the_hub_is_another_one(hub):
    term = Term("reward_model", options={"path": "some/judge"})
    before = identity("some/base", term)
    hub.move("some/judge", COMMITS[1])
    after = identity("some/base", term)
    changed = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
    assert changed == {"path of signal reward_model": COMMITS}


def test_options_that_were_empty_at_the_start_are_compared(tmp_path):
    """A key that only one of two identities has is not compared: ``options.clip`` went unseen beside no options."""
    plain, other = (
        of_start(
            Config.load(None, ["data.task=slots", f"algorithm.loss.options={options}"]),
            ("algorithm",),
            ONE_PROCESS,
        )
        for options in ("{}", "{clip: 0.3}")
    )
    run = RunDirectory.create(tmp_path / "run", "", plain)
    run.check_identity(plain)
    with pytest.raises(InputError, match=r"algorithm\.loss\.options: \{.*clip.*0\.3.*\}, was \{\}"):
        run.check_identity(other)
