"""What must be the same for a run to go on: field by field, so that a refusal can name the one that changed."""

import importlib.util
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cagsr import build
from cagsr.config import Config
from cagsr.identity import code, file_digest, identity, settings, versions
from cagsr.records import fingerprint
from cagsr.reward import Reward
from cagsr.types import Prompt

__all__ = ["of_data", "of_start"]

# They move a run's files and its stops, never its numbers.
FREE = {"train.save_every", "train.keep_checkpoints", "sft.directory", "sft.save_every"}


def of_start(
    config: Config, read: Sequence[str], processes: int, reward: Reward | None = None
) -> dict[str, Any]:
    """All that can be known before a model is loaded: config keys, weights, code, versions, processes.

    ``read`` names the sections and keys of the config that the command reads.
    """
    found = {
        key: value
        for key, value in _flat(config.model_dump(mode="json"))
        if key not in FREE and any(key == name or key.startswith(f"{name}.") for name in read)
    }
    if "sft" not in read or config.sft.scratch is None:
        name = build.base_name(config)
        model = identity(name, config.model.revision)
        found |= {
            "model": model.get("sha256", model.get("revision")),
            "tokenizer and model config": settings(name),
        }
    if reward is not None:
        found |= _of_reward(reward)
    if config.data.checker and "." in config.data.checker:
        found |= _of_module(config.data.checker)
    return found | {"code of cagsr": code(), "processes": processes, **versions()}


def of_data(prompts: Iterable[Prompt]) -> dict[str, str]:
    """Every prompt as the model reads it, and the row it came from: references and columns may be rewarded."""
    texts = (text for prompt in prompts for text in (prompt.text, json.dumps(dict(prompt.row), default=str)))
    return {"data": fingerprint(texts)}


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _of_reward(reward: Reward) -> dict[str, Any]:
    """The terms, whatever file they came from; the code of signals of the user's own; the models they name."""
    found: dict[str, Any] = {"reward": fingerprint(repr(term) for term in reward.terms)}
    for term in reward.terms:
        if "." in term.signal:
            found |= _of_module(term.signal)
        for option, value in term.options.items():
            if isinstance(value, str) and Path(value).is_dir():
                found[f"{option} of signal {term.signal}"] = identity(value)["sha256"]
    return found


def _of_module(path: str) -> dict[str, Any]:
    spec = importlib.util.find_spec(path.rpartition(".")[0])
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return {}
    return {f"code of {path}": file_digest(spec.origin)}
