"""`cagsr doctor`: versions, devices, and what a model supports here."""

import platform
from importlib import metadata
from typing import Any

import torch

from cagsr.errors import CagsrError
from cagsr.io.terminal import said
from cagsr.models.gguf import weights_of
from cagsr.models.languages import unforced
from cagsr.models.load import load_model, load_tokenizer, make_policy
from cagsr.models.proof import prove_training

__all__ = ["described", "doctor"]

PACKAGES = (
    "cagsr",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "peft",
    "bitsandbytes",
    "tensorboard",
    "wandb",
    "trackio",
)


def doctor(model: str | None, revision: str | None = None) -> dict[str, Any]:
    """Report ``{"versions", "devices", "model"}``; for the model, what was proved of it, or the refusal."""
    report: dict[str, Any] = {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "devices": _devices(),
    }
    if model is not None:
        report["model"] = _examine(model, revision)
    return report


def described(report: dict[str, Any]) -> list[str]:
    """The report of `doctor` as lines for a terminal."""
    lines = [said(f"{name} {version}" for name, version in report["versions"].items())]
    lines += [f"device: {device}" for device in report["devices"]]
    for key, value in report.get("model", {}).items():
        if key == "proof":
            lines += [f"computed {tried}" for tried in value]
        else:
            lines.append(f"{key.replace('_', ' ')}: {_shown(value)}")
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> list[str]:
    found = [f"cpu, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"]
    found += [f"cuda:{i}, {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def _examine(name: str, revision: str | None) -> dict[str, Any]:
    try:
        model, dropout = load_model(name, revision=revision)
        policy = make_policy(model, load_tokenizer(name, revision=revision), dropout=dropout)
        prove_training(policy)
    except CagsrError as error:
        return {"name": name, "supported": False, "reason": str(error)}
    unforced_language = unforced(model, policy.tokenizer)
    return {
        "name": name,
        "supported": True,
        **({"weights": weights} if (weights := weights_of(name)) else {}),
        "architecture": policy.readable.kind,
        "attention": str(policy.readable),
        "prompts": str(policy.sharing),
        "proof": [str(tried) for tried in policy.proof],
        "context": "any length" if policy.context is None else policy.context,
        "longest_response": "any length" if policy.response_limit is None else policy.response_limit,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "end_of_sequence_ids": policy.eos_ids,
        **policy.rules.described(),
        **({"target_language": unforced_language} if unforced_language else {}),
        "chat_template": policy.tokenizer.chat_template is not None,
        "fast_tokenizer": policy.tokenizer.is_fast,
        "dropout_switched_off": dropout,
    }
