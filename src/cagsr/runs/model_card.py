"""Model card of a trained model: README.md in the form that the hub and people read."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from yaml import YAMLError

from cagsr.config.schema import FILES

__all__ = ["model_card", "of_whole_model"]

# The line that says what the files are, and so another one of a model that was exported.
FORM = re.compile(r"^- Files: .*$", re.MULTILINE)


def model_card(
    run: Mapping[str, Any],
    steps: int,
    evaluation: Mapping[str, float] | None,
    prompts: int | None,
    form: str = "the whole model",
    asked: str | None = None,
) -> str:
    """README.md of a trained model. ``run`` has the resolved sections of a config, ``evaluation`` this model's numbers.

    ``form`` says what the files are, as of `models.load.saved_form`; ``asked`` is the preset that was asked for, where
    that was a choice. Of a checkpoint neither ``evaluation`` nor the number of ``prompts`` is known.

    A base that is a local directory is called by its last names only: a path means nothing elsewhere. ``base_model``
    and ``datasets`` are written for names that the hub can have, and for no other: the hub refuses a card with one.
    """
    algorithm, training, reward = run["algorithm"], run["train"], run["reward"]
    name = run["model"]["name"]
    local = name is None or Path(name).exists()
    base = name if not local else _local_name(name, run["data"]["task"])
    chosen = reward["terms"]
    by = "" if asked in (None, reward["preset"]) else f", chosen by `{asked}`"
    start = (run["model"]["lora"] or {}).get("path")
    if start is not None:
        base = f"{base}` with the adapter `{_local_name(start, None) if Path(start).exists() else start}"
    terms = ", ".join(term["signal"] for term in chosen) if chosen else f"preset `{reward['preset']}`{by}"
    adapter = form.startswith("a LoRA adapter")
    about = ModelCardData(
        library_name="peft" if adapter else "transformers",
        tags=["cagsr", "reinforcement-learning"],
        base_model=name if _can_be_on_the_hub(name) else None,
        datasets=[source for source in _sources(run["data"]["source"]) if _can_be_on_the_hub(source)] or None,
    )
    trained_on = "" if prompts is None else f" on {prompts} prompts"
    lines = [
        "---",
        about.to_yaml(),
        "---",
        "",
        "# Trained with cagsr",
        "",
        f"`{base}` after {steps} steps of {algorithm['name']}{trained_on}, in the manner of CAGSR",
        "(arXiv 2502.10482).",
        "",
        f"- Reward: {terms}; observer: {reward['observer']}; salience: {reward['salience']['kind']}",
        f"- {run['sampling']['candidates']} candidates a prompt at temperature {run['sampling']['temperature']}, "
        f"{training['prompts_per_step']} prompts a step",
        f"- Learning rate {training['learning_rate']}, KL coefficient {algorithm['kl_coefficient']}, "
        f"seed {training['seed']}",
        f"- Files: {form}",
        "",
    ]
    lines += _table(evaluation) if evaluation else []
    lines += ["Judge the model on your own prompts: the reward checks no fact.", ""]
    return "\n".join(lines)


def _local_name(name: str | None, task: str | None) -> str:
    return f"the base of {task}" if name is None else "/".join(Path(name).parts[-2:])


def _table(evaluation: Mapping[str, float]) -> list[str]:
    lines = [f"Evaluation at step {evaluation['step']:.0f} (greedy):", "", "| metric | value |", "|---|---|"]
    lines += [f"| {metric} | {value:.4f} |" for metric, value in evaluation.items() if metric != "step"]
    return [*lines, ""]


def of_whole_model(card: str) -> str:
    """The card of a model whose adapter, if it was one, is merged into its base; one not of cagsr stays as it is."""
    try:
        changed = ModelCard(card, ignore_metadata_errors=True)
    except (ValueError, YAMLError):  # a header that says nothing
        return card
    if "cagsr" not in (changed.data.get("tags") or []):
        return card
    changed.data["library_name"] = "transformers"
    changed.text = FORM.sub("- Files: the whole model", changed.text)
    return str(changed)


def _sources(given: Any) -> list[str]:
    """The names in ``data.source`` as JSON has it: one, several, or none."""
    entries = given if isinstance(given, list) else [] if given is None else [given]
    return [one if isinstance(one, str) else one["path"] for one in entries]


def _can_be_on_the_hub(name: str | None) -> bool:
    """Whether ``name`` has the form of a hub's id, "owner/name" or "name", and nothing of that name is here; the hub is
    not asked.
    """
    if name is None or Path(name).exists() or name.lower().endswith(FILES):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
