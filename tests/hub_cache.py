"""A made-up cache of the model hub: models that have a hub's name, and no network."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

COMMITS = ("0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef")


class HubCache:
    """``add(name, model)`` copies the directory ``model`` into the cache, as what ``name``'s main branch holds."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        self.root = root
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def add(self, name: str, model: str | Path, commit: str = COMMITS[0]) -> None:
        kept = self.root / f"models--{name.replace('/', '--')}"
        shutil.copytree(model, kept / "snapshots" / commit)
        self.move(name, commit)

    def move(self, name: str, commit: str) -> None:
        """``name``'s main branch is at ``commit`` from now on."""
        refs = self.root / f"models--{name.replace('/', '--')}" / "refs"
        refs.mkdir(parents=True, exist_ok=True)
        (refs / "main").write_text(commit)
