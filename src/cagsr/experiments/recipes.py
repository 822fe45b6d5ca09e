"""Training of recipes: each is an ordinary run directory with ``model/`` and ``summary.json`` in it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cagsr.config import Config
from cagsr.config.schema import Sft
from cagsr.distributed.process_group import accelerated
from cagsr.experiments.systems.recipe import Choose, Imitate, Prefer, Recipe, Reinforce, Unchanged
from cagsr.models.build import build_policy
from cagsr.models.load import save_model
from cagsr.models.policy import Policy
from cagsr.models.reference import Reference
from cagsr.runs.directory import METRICS, RunDirectory, fingerprint
from cagsr.runs.identity import of_start
from cagsr.runs.session import Claim
from cagsr.training.dpo import DirectPreference, prefer
from cagsr.training.sft import fine_tune
from cagsr.training.trainer import READ, Trainer

__all__ = ["TrainedRecipe", "train_recipe", "trained_policy"]

# Preferences move a model faster than rewards do: at the learning rate of reinforcement DPO unlearns the language.
PREFERENCE_RATE = 0.3


@dataclass(frozen=True)
class TrainedRecipe:
    """The policy that a recipe led to, how many tokens were generated to train it, and how long that took."""

    policy: Policy
    tokens: int
    seconds: float


def train_recipe(recipe: Recipe, base: Policy, config: Config, accept_changes: bool = False) -> TrainedRecipe:
    """Train as the recipe says, in ``config.run.directory``: what was begun there goes on, what is finished is read.

    Where nothing is trained the policy is the ``base``, and the directory holds a run of 0 steps.
    """
    directory = Path(config.run.directory)
    if isinstance(recipe, Unchanged | Choose):
        with _claim(config, accept_changes) as claim:
            claim.start({})
            _write_summary(claim, 0, 0.0)
        return TrainedRecipe(base, 0, 0.0)
    if isinstance(recipe, Reinforce):
        config = config.replaced({"algorithm.name": recipe.algorithm})
        if (
            config.algorithm.kl_in_reward
        ):  # of PPO, where the estimate in the loss of the other systems says nothing
            config = config.replaced({"algorithm.kl_estimate": "k2"})
        trainer = Trainer(args=config, reward=recipe.terms, console=Console(quiet=True))
        outcome = trainer.run(resume=True, accept_changes=accept_changes, evaluate=False).outcome
    else:
        outcome = _supervise(recipe, config, accept_changes)
    tokens = int(sum(row.get("tokens", 0) for row in RunDirectory(directory, "").rows(METRICS)))
    return TrainedRecipe(trained_policy(config), tokens, outcome["seconds"])


def _claim(config: Config, accept_changes: bool) -> Claim:
    """The place of a run that `Trainer` does not make, new or to go on with, and what it stands on."""
    accelerator = accelerated(mixed_precision=config.train.mixed_precision)
    known = of_start(config, READ, accelerator)
    return Claim(config.run.directory, config, known, accelerator, resume=True, accept_changes=accept_changes)


def _write_summary(claim: Claim, steps: int, seconds: float) -> dict[str, Any]:
    assert claim.run is not None, "a comparison is one process"
    summary = {"steps": steps, "seconds": seconds}
    claim.run.write_summary(summary)
    return summary


def trained_policy(config: Config) -> Policy:
    """The model of a finished run, without a critic; in float32, as fewer bits would round an adapter away."""
    made = {
        "model.name": str(Path(config.run.directory) / "model"),
        "model.lora": None,
        "model.dtype": "float32",
        "model.load_in_4bit": False,
    }
    return build_policy(config.replaced({**made, "algorithm.name": "grpo"}))


def _supervise(recipe: Imitate | Prefer, config: Config, accept_changes: bool) -> dict[str, Any]:
    """As many optimizer steps as reinforcement learning takes, on its prompts and at its learning rate.

    Direct preference optimisation goes at PREFERENCE_RATE of it.
    """
    training = config.train
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
        if (finished := claim.finished(training.steps)) is not None:
            return finished
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
        save_model(policy, claim.directory / "model")
        return _write_summary(claim, training.steps, round(continuation.elapsed(), 1))
