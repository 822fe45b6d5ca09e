"""LoRA adapters on the disk: the base that one stands on, where that lies now, and whether it is still the same."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cagsr.errors import InputError
from cagsr.io.provenance import identity, is_gguf
from cagsr.io.safetensors_only import hub_file

__all__ = [
    "ADAPTER",
    "ADAPTER_WEIGHTS",
    "BASE",
    "Base",
    "adapter_at",
    "base_at",
    "found_base",
    "identity_with_base",
    "other_base",
    "write_base",
]

ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = "base.json"
"""What this package writes beside an adapter: its `Base`, and the way there from the adapter's own directory."""

FETCHED = (ADAPTER_WEIGHTS, "*.json", "*.jinja", "*.txt", "*.model")
"""Files of an adapter on the hub that are of use: weights in safetensors, settings and tokenizer."""


@dataclass(frozen=True)
class Base:
    """The whole model that an adapter stands on.

    name      absolute path of a directory or a GGUF file, or a hub name
    revision  commit of a hub model; None for what lies here
    sha256    digest of its weights, as of `provenance.identity`; None where that is not known
    """

    name: str
    revision: str | None
    sha256: str | None

    @property
    def content(self) -> str | None:
        """What tells it from another base of the same name: the commit of a hub model, or the digest."""
        return self.revision or self.sha256


def adapter_at(name: str, revision: str | None = None) -> Path | None:
    """Directory of an adapter's files, fetched where ``name`` is on the hub; None where it names no adapter."""
    # Not Path.is_dir: it raises where a name is too long for a file.
    if os.path.isdir(name):
        return Path(name) if os.path.isfile(os.path.join(name, ADAPTER)) else None
    if is_gguf(name):
        return None
    config = _cached(name, ADAPTER, revision)
    if config is None:
        return None
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=config.parent.name, allow_patterns=list(FETCHED)))


def base_at(name: str, commit: str | None) -> Base:
    """The `Base` that a whole model of this name is now; ``commit`` is the one that was loaded from the hub."""
    if (place := _here(name)) is not None:
        return Base(place, None, identity(place)["sha256"])
    config = _cached(name, "config.json", commit)
    return Base(name, commit, config and identity(str(config.parent))["sha256"])


def found_base(adapter: Path) -> Base:
    """The base of the adapter in a directory, where it lies now.

    A path that is not absolute is looked up from the working directory, then from the adapter's; one that leads
    nowhere any more, by the way there that `BASE` has, as adapter and base may have moved together. Raises InputError
    for a base that is missing, and for one that is not what the adapter was trained on, as far as `BASE` says that.
    """
    config, record = _json(adapter / ADAPTER), _json(adapter / BASE) if (adapter / BASE).exists() else {}
    name = config.get("base_model_name_or_path")
    if not name or not isinstance(name, str):
        raise InputError(f"model.name: {adapter / ADAPTER} names no base; set base_model_name_or_path in it.")
    places = [name, *(os.path.join(adapter, way) for way in (name, record.get("beside")) if way)]
    here = next((found for place in places if (found := _here(place)) is not None), None)
    if here == str(adapter.resolve()):
        raise InputError(f"model.name: {adapter / ADAPTER} names the adapter itself as its base.")
    if here is None and (os.path.isabs(name) or is_gguf(name) or not record.get("revision", True)):
        raise InputError(
            f"model.name: the base of the LoRA adapter {adapter} is missing: there is no "
            f"{'file' if is_gguf(name) else 'directory'} {name}. Put it "
            f"there, or write its place into {adapter / ADAPTER} (base_model_name_or_path)."
        )
    base = _on_hub(name, config.get("revision"), record) if here is None else base_at(here, None)
    known = record.get("revision"), record.get("sha256")
    if record and base.content not in known:
        raise InputError(
            f"model.name: {base.name} is not the base that the LoRA adapter {adapter} was trained on: that had weights "
            f"{_beginning(known[0] or known[1])}, and these are {_beginning(base.content)}. Put the old ones back or "
            f"train the adapter anew; without {adapter / BASE} it is loaded onto any base."
        )
    return base


def other_base(adapter: Path, base: Base) -> str | None:
    """What tells that the adapter in a directory stands on another base, in words; None where nothing does.

    Told by the digests in `BASE`; where there are none, by the name in the adapter's config. That of a base which the
    hub has not sent yet is unknown: ask again once it is loaded.
    """
    config, record = _json(adapter / ADAPTER), _json(adapter / BASE) if (adapter / BASE).exists() else {}
    known = [each for each in (record.get("revision"), record.get("sha256")) if each]
    if known:
        same = {base.revision, base.sha256} & {*known} or (base.sha256 is None and record.get("sha256"))
        weights = (
            f"it was trained on weights {_beginning(known[0])}, and these are {_beginning(base.content)}"
        )
        return None if same else weights
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    name = name if isinstance(name, str) else None
    places = [_here(place) for place in (name, os.path.join(adapter, name))] if name else []
    if base.name not in (name, *places):
        return f"its {ADAPTER} names {name or 'no base'}"
    if revision and identity(base.name, revision).get("revision", base.revision) != base.revision:
        return f"its {ADAPTER} names the revision {revision}"
    return None


def identity_with_base(name: str, revision: str | None = None) -> dict[str, Any]:
    """`provenance.identity` of a model; of an adapter also ``base``, the `Base` that it stands on.

    Raises InputError as `found_base` does.
    """
    adapter = adapter_at(name, revision)
    return identity(name, revision) | ({} if adapter is None else {"base": asdict(found_base(adapter))})


def write_base(staging: Path, directory: Path, base: Base) -> None:
    """Name the base in the files of an adapter that PEFT wrote to ``staging`` and that goes to ``directory``."""
    named = {"base_model_name_or_path": base.name, "revision": base.revision}
    beside = os.path.relpath(base.name, directory.resolve()) if base.revision is None else None
    for file, content in (
        (ADAPTER, _json(staging / ADAPTER) | named),
        (BASE, asdict(base) | {"beside": beside}),
    ):
        (staging / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _here(name: str) -> str | None:
    """Absolute path of a whole model in a directory or a GGUF file; None where there is none."""
    if os.path.isdir(name):
        return os.path.realpath(name)
    # Not the real path: caches of hubs keep a file under another name than its link's.
    return os.path.abspath(name) if is_gguf(name) and os.path.isfile(name) else None


def _on_hub(name: str, revision: str | None, record: dict[str, Any]) -> Base:
    """A base by its hub name. Where the hub does not know it, loading will tell."""
    known = record.get("revision")
    commit = known if known and revision == known else identity(name, revision)["revision"] or known
    return Base(name, commit, None)


def _cached(name: str, file: str, revision: str | None) -> Path | None:
    """`hub_file`, and None for what is no name of a model: loading it will tell."""
    try:
        return hub_file(name, file, revision)
    except (OSError, ValueError):
        return None


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"model.name: {path} cannot be read: {error}") from error


def _beginning(digest: str | None) -> str:
    return f"{digest[:12]}..." if digest else "unknown"
