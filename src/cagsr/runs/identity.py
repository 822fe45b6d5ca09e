"""Identity of a run: the fields that must be unchanged to resume it; a refusal names the one that changed."""

import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from pydantic import BaseModel

from cagsr.config import Config
from cagsr.config.schema import Term
from cagsr.io.adapters import adapter_at, found_base, identity_with_base
from cagsr.io.places import files_named
from cagsr.io.provenance import code, file_digest, identity, settings_digest, versions
from cagsr.runs.directory import fingerprint
from cagsr.tasks.bases import base_name
from cagsr.types import Prompt

__all__ = ["described", "model_of", "of_checker", "of_configured", "of_data", "of_model", "of_start"]

# What identifies a model in an identity: `of_model`, and of one that was in memory `models.build.model_digest`.
START = "adapter at the start"
OF_MODEL = ("model", "tokenizer and model config", "base of the adapter", "tokenizer", START)
# Keys that change where and when a run saves, never its numbers.
FREE = {"train.save_every", "train.keep_checkpoints", "sft.directory", "sft.save_every"}
FREE |= {"train.gather_for_rollouts"}
FREE |= {"sampling.vllm.base_url", "sampling.vllm.group_port", "sampling.vllm.timeout"}
SOURCES = {"data.source", "data.evaluation_source"}


def of_start(
    config: Config,
    read: Sequence[str],
    accelerator: Accelerator,
    terms: Sequence[Term] = (),
    loaded: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The identity that is known before a model is loaded: config keys, weights, code, versions, processes.

    ``read`` names the sections and keys of the config that the command reads. A path is left out where its content is
    compared: what was moved is still the same. ``loaded`` identifies a model that was not loaded by its name.
    """
    places = {"model.name": config.model.name, "model.lora.path": _start(config)}
    free = FREE | {key for key, place in places.items() if place and os.path.exists(place)}
    found = {
        key: value
        for key, value in _flat(config)
        if key not in free and any(key == name or key.startswith(f"{name}.") for name in read)
    }
    for key in SOURCES & found.keys():
        found[key] = _without_paths(found[key])
    if loaded is not None:
        found |= loaded
    elif "sft" not in read or config.sft.scratch is None:
        found |= of_configured(config)
    if terms:
        found |= _of_terms(terms)
    if "." in config.algorithm.loss.name and "algorithm" in read:
        found |= _of_module(config.algorithm.loss.name)
    if config.data.checker and "." in config.data.checker:
        found |= _of_module(config.data.checker)
    used = {"peft": config.model.lora is not None, "bitsandbytes": config.model.load_in_4bit}
    packages = {name: value for name, value in versions().items() if used.get(name, True)}
    found |= {"processes": accelerator.num_processes, "device": accelerator.device.type}
    found["weights"] = "in shards (FSDP2)" if accelerator.is_fsdp2 else "whole"
    return found | {"code of cagsr": code(), **packages}


def _without_paths(source: Any) -> Any:
    """A named data set, or several, without the paths of those that are here."""
    if isinstance(source, list):
        return [_without_paths(one) for one in source]
    if isinstance(source, dict):
        return source | {"path": _without_paths(source["path"])}
    return None if source and (files_named(source) or os.path.isdir(source)) else source


def of_data(prompts: Iterable[Prompt], name: str = "data") -> dict[str, str]:
    """Fingerprint of every prompt as the model reads it, and of its row: references and columns may be rewarded.

    Where data sets have weights, also of which one it is of: the order of prompts depends on that.
    """
    texts = (
        text
        for prompt in prompts
        for text in (
            prompt.text,
            json.dumps(dict(prompt.row), default=str),
            *([] if prompt.weight is None else [str(prompt.part)]),
        )
    )
    return {name: fingerprint(texts)}


def of_configured(config: Config) -> dict[str, Any]:
    """`of_model` of the model that a config names, with the adapter that is gone on from."""
    return of_model(base_name(config), config.model.revision, _start(config))


def described(config: Config) -> dict[str, Any]:
    """`io.adapters.identity_with_base` of the model that a config names, and the ``adapter`` that is gone on from."""
    start = _start(config)
    found = identity_with_base(base_name(config), config.model.revision)
    return found if start is None else found | {"adapter": identity(start)}


def _start(config: Config) -> str | None:
    return config.model.lora and config.model.lora.path


def of_model(name: str, revision: str | None, start: str | None = None) -> dict[str, Any]:
    """Identity of a model by its name: its weights, what is beside them, and the base of an adapter.

    ``start`` is an adapter of it, put on beside. That there is none is said too: what one of two identities has alone
    is not compared.
    """
    found = {"model": _content(name, revision), "tokenizer and model config": settings_digest(name)}
    found[START] = None
    if start is not None:
        weights, beside = _content(start, None), settings_digest(start)
        found[START] = weights if beside is None else fingerprint([str(weights), beside])
    adapter = adapter_at(name, revision)
    if adapter is not None:
        base = found_base(adapter)
        found["base of the adapter"] = base.content or base.name
    return found


def model_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an identity that identifies the model."""
    return {key: found[key] for key in OF_MODEL if key in found}


def _content(name: str, revision: str | None) -> str | None:
    """Hash of a directory's weights, or the commit of a hub model."""
    found = identity(name, revision)
    return found.get("sha256", found.get("revision"))


def _flat(section: BaseModel, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a section with its value, ready for JSON.

    A mapping that is a value (options) is one key: keys of its own would be missing where it was empty, and what only
    one of two identities has is not compared.
    """
    for key, value in section.model_dump(mode="json").items():
        inner = getattr(section, key)
        if isinstance(inner, BaseModel):
            yield from _flat(inner, f"{name}{key}.")
        else:
            yield f"{name}{key}", value


def _of_terms(terms: Sequence[Term]) -> dict[str, Any]:
    """Identity of the reward's terms: names and options, the code of the user's own signals, the models they name."""
    found: dict[str, Any] = {"reward": fingerprint(repr(term) for term in terms)}
    for term in terms:
        if "." in term.signal:
            found |= _of_module(term.signal)
        revision = str(term.options["revision"]) if term.options.get("revision") else None
        for option, value in term.options.items():
            on_hub = (term.signal, option) == ("reward_model", "path")
            if isinstance(value, str) and (on_hub or Path(value).is_dir()):
                found[f"{option} of signal {term.signal}"] = _content(value, revision)
    return found


def of_checker(checker: object) -> dict[str, str]:
    """The code of a checker that a Python program handed over, where Python knows it."""
    with suppress(OSError, TypeError):
        return {"code of the checker": fingerprint([inspect.getsource(type(checker))])}
    return {}


def _of_module(path: str) -> dict[str, Any]:
    module, _, attribute = path.rpartition(".")
    if module == "__main__":  # a notebook's or a script's own function
        with suppress(OSError, TypeError, AttributeError):
            return {
                f"code of {path}": fingerprint([inspect.getsource(getattr(sys.modules[module], attribute))])
            }
        return {}
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return {}
    return {f"code of {path}": file_digest(spec.origin)}
