"""What a model is called in a record: by the content of a directory, by the commit of a hub model."""

import hashlib

import pytest

from cagsr.io.provenance import identity, settings_digest
from hub_cache import COMMITS, HubCache


@pytest.fixture
def hub(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "b.safetensors").write_bytes(b"second")
    (tmp_path / "model" / "a.safetensors").write_bytes(b"first")
    (tmp_path / "model" / "config.json").write_bytes(b"{}")
    hub = HubCache(tmp_path / "hub", monkeypatch)
    hub.add("some/model", tmp_path / "model")
    return hub


def test_a_directory_is_known_by_its_weights_and_its_settings(hub, tmp_path):
    place = str(tmp_path / "model")
    assert identity(place) == {"name": place, "sha256": hashlib.sha256(b"firstsecond").hexdigest()}
    assert settings_digest(place) == hashlib.sha256(b"{}").hexdigest()


def test_a_hub_model_is_known_by_the_commit_that_its_branch_leads_to(hub):
    assert identity("some/model") == {"name": "some/model", "revision": COMMITS[0]}
    assert identity("some/model", "main")["revision"] == COMMITS[0]
    hub.move("some/model", COMMITS[1])
    assert identity("some/model")["revision"] == COMMITS[1]
    assert identity("some/model", COMMITS[0])["revision"] == COMMITS[0]


@pytest.mark.parametrize("name", ["none", "some/other", "/no/such/directory", "not a name"])
def test_a_name_that_leads_nowhere_keeps_its_revision(hub, name):
    assert identity(name) == {"name": name, "revision": None}
    assert identity(name, "v2") == {"name": name, "revision": "v2"}
