"""The model card: what was done to a model, in the form that hubs and people read."""

from collections.abc import Mapping
from typing import Any

__all__ = ["model_card"]


def model_card(base: str, run: Mapping[str, Any], outcome: Mapping[str, Any], prompts: int) -> str:
    """README.md of a trained model. ``run`` has the resolved sections of a config."""
    algorithm, training, reward = run["algorithm"], run["train"], run["reward"]
    terms = reward["terms"] or f"preset `{reward['preset']}`"
    lines = [
        "---",
        "library_name: transformers",
        "tags: [cagsr, reinforcement-learning, label-free]",
        f"base_model: {base}",
        "---",
        "",
        "# Trained with cagsr",
        "",
        f"`{base}` after {outcome['steps']} steps of {algorithm['name']} on {prompts} prompts, without labels: the",
        "reward is read from the model's own attention to the prompt (arXiv 2502.10482).",
        "",
        f"- Reward: {terms}; observer: {reward['observer']}; salience: {reward['salience']['kind']}",
        f"- {run['sampling']['candidates']} candidates a prompt at temperature {run['sampling']['temperature']}, "
        f"{training['prompts_per_step']} prompts a step",
        f"- Learning rate {training['learning_rate']}, KL coefficient {algorithm['kl_coefficient']}, "
        f"seed {training['seed']}",
        "",
    ]
    last = (outcome.get("last") or [None])[-1]
    if last:
        lines += ["Evaluation at the end (greedy):", "", "| metric | value |", "|---|---|"]
        lines += [f"| {name} | {value:.4f} |" for name, value in last.items() if name != "step"]
        lines.append("")
    lines += [
        "The reward repairs omission; it adds no knowledge and checks no fact. Judge the model on your own prompts.",
        "",
    ]
    return "\n".join(lines)
