"""Model card of a trained model: README.md in the form that the hub and people read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

__all__ = ["model_card"]


def model_card(
    run: Mapping[str, Any],
    steps: int,
    evaluation: Mapping[str, float] | None,
    prompts: int,
    form: str = "the whole model",
    asked: str | None = None,
) -> str:
    """README.md of a trained model. ``run`` has the resolved sections of a config, ``evaluation`` this model's numbers.

    ``form`` says what the files are, as of `models.load.saved_form`; ``asked`` is the preset that was asked for, where
    that was a choice.

    A base that is a local directory is called by its last names only: a path means nothing elsewhere. ``base_model`` is
    written for a name that the hub can have, and for no other: the hub refuses a card that names one.
    """
    algorithm, training, reward = run["algorithm"], run["train"], run["reward"]
    name = run["model"]["name"]
    local = name is None or Path(name).exists()
    base = name if not local else _local_name(name, run["data"]["task"])
    chosen = reward["terms"]
    by = "" if asked in (None, reward["preset"]) else f", chosen by `{asked}`"
    terms = ", ".join(term["signal"] for term in chosen) if chosen else f"preset `{reward['preset']}`{by}"
    library = "peft" if form.startswith("a LoRA adapter") else "transformers"
    lines = ["---", f"library_name: {library}", "tags: [cagsr, reinforcement-learning]"]
    lines += [f"base_model: {name}"] if name is not None and not local and _can_be_on_the_hub(name) else []
    lines += [
        "---",
        "",
        "# Trained with cagsr",
        "",
        f"`{base}` after {steps} steps of {algorithm['name']} on {prompts} prompts, in the manner of CAGSR",
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


def _can_be_on_the_hub(name: str) -> bool:
    """Whether ``name`` has the form of a hub's id, "name" or "owner/name"; nothing is asked of the hub."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
