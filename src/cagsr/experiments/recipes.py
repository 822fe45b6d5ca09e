"""A recipe carried out: each is an ordinary run directory with ``model/`` and ``summary.json`` in it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cagsr.config import Config
from cagsr.config.schema import Sft
from cagsr.distributed.process_group import accelerated
from cagsr.experiments.systems.recipe import Imitate, Prefer, Reinforce
from cagsr.models.build import build_policy
from cagsr.models.load import save_model
from cagsr.models.policy import Policy, Reference
from cagsr.runs.directory import METRICS, RUN, RunDirectory, fingerprint
from cagsr.runs.identity import of_start
from cagsr.runs.session import Claim
from cagsr.training.dpo import DirectPreference, prefer
from cagsr.training.sft import fine_tune
from cagsr.training.trainer import READ, Trainer

__all__ = ["Carried", "carry_out", "record_untrained", "trained_policy"]

# Preferences move a model faster than rewards do: at the learning rate of reinforcement DPO unlearns the language.
PREFERENCE_RATE = 0.3


@dataclass(frozen=True)
class Carried:
    """The trained policy, how many tokens were generated while it was trained, and how long that took."""

    policy: Policy
    tokens: int
    seconds: float


def carry_out(
    recipe: Reinforce | Imitate | Prefer, config: Config, console: Console, accept_changes: bool = False
) -> Carried:
    """Train as the recipe says in ``config.run.directory``; a run that stopped there goes on or begins again."""
    directory = Path(config.run.directory)
    done = _is_finished(directory)
    if isinstance(recipe, Reinforce):
        config = config.replaced({"reward.terms": list(recipe.terms), "algorithm.name": recipe.algorithm})
        if not done:
            resume = (directory / RUN).exists()
            trainer = Trainer(args=config, console=console)
            trainer.run(resume=resume, accept_changes=accept_changes, evaluate=False)
        tokens = int(sum(row.get("tokens", 0) for row in RunDirectory(directory, "").rows(METRICS)))
        return Carried(trained_policy(config), tokens, _summary(directory)["seconds"])
    if not done:
        _teach(recipe, config, accept_changes)
    return Carried(trained_policy(config), 0, _summary(directory)["seconds"])


def record_untrained(config: Config, accept_changes: bool = False) -> None:
    """A run directory for a system that trains nothing: config, identity and a summary of 0 steps."""
    with _claim(config, accept_changes) as claim:
        claim.start({})
        assert claim.run is not None, "a comparison is one process"
        claim.run.write_summary({"steps": 0, "seconds": 0.0})


def _claim(config: Config, accept_changes: bool) -> Claim:
    """The place of a run that `Trainer` does not make, new or to go on with, and what it stands on."""
    directory = Path(config.run.directory)
    accelerator = accelerated(mixed_precision=config.train.mixed_precision)
    known = of_start(config, READ, accelerator)
    resume = (directory / RUN).exists()
    return Claim(directory, config, known, accelerator, resume=resume, accept_changes=accept_changes)


def _is_finished(directory: Path) -> bool:
    return "stopped" not in _summary(directory, {"stopped": "before its end"})


def _summary(directory: Path, otherwise: dict[str, Any] | None = None) -> dict[str, Any]:
    path = directory / "summary.json"
    if otherwise is not None and not path.exists():
        return otherwise
    return json.loads(path.read_text(encoding="utf-8"))


def trained_policy(config: Config) -> Policy:
    """The model of a finished run, without a critic."""
    made = {"model.name": str(Path(config.run.directory) / "model"), "model.lora": None}
    return build_policy(config.replaced({**made, "algorithm.name": "grpo"}))


def _teach(recipe: Imitate | Prefer, config: Config, accept_changes: bool) -> None:
    """As many optimizer steps as reinforcement learning takes, on its prompts and at its learning rate.

    Direct preference optimisation goes at PREFERENCE_RATE of it.
    """
    directory, training = Path(config.run.directory), config.train
    schedule: dict[str, Any] = {
        "steps": training.steps * config.algorithm.epochs * config.algorithm.minibatches,
        "batch_size": recipe.batch_size,
        "schedule": training.schedule,
        "warmup_steps": training.warmup_steps,
        "weight_decay": training.weight_decay,
    }
    pairs = recipe.pairs if isinstance(recipe, Prefer) else []
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    if isinstance(recipe, Imitate):
        texts = recipe.responses
    with _claim(config, accept_changes) as claim:
        policy = build_policy(config)
        policy.to(claim.accelerator.device)
        claim.start({"data": fingerprint(texts)})
        continuation = claim.continuation(config, training.save_every, Console(quiet=True))

        def report(step: int, loss: float, **numbers: float) -> None:
            if claim.run is not None:
                claim.run.add_metrics(step, {"loss": loss, **numbers})

        longest, given = config.sampling.max_new_tokens, (claim.accelerator, report, continuation)
        with continuation.stops:
            if isinstance(recipe, Imitate):
                settings = Sft(learning_rate=training.learning_rate, max_reference_tokens=longest, **schedule)
                fine_tune(policy, recipe.prompts, recipe.responses, settings, *given, seed=training.seed)
            else:
                rate = PREFERENCE_RATE * training.learning_rate
                settings = DirectPreference(
                    learning_rate=rate, max_response_tokens=longest, seed=training.seed, **schedule
                )
                prefer(policy, Reference(policy), recipe.pairs, settings, *given)
        save_model(policy, directory / "model")
        assert claim.run is not None, "a comparison is one process"
        claim.run.write_summary({"steps": training.steps, "seconds": round(continuation.elapsed(), 1)})
