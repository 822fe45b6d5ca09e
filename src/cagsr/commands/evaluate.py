"""`cagsr eval`: models side by side on held-out prompts, with paired intervals."""

import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from cagsr import build
from cagsr.commands import silence_libraries
from cagsr.config import Config
from cagsr.errors import InputError
from cagsr.evaluation import answer, values_of
from cagsr.metrics.bootstrap import summarise
from cagsr.world import World

__all__ = ["evaluate", "named_models"]


def named_models(arguments: list[str]) -> dict[str, str]:
    """``NAME=PATH`` or ``PATH`` each; a path's own name is used where it is not ``model`` or ``best``."""
    found: dict[str, str] = {}
    for argument in arguments:
        name, separator, path = argument.partition("=")
        if not separator:
            path, parts = argument, Path(argument).absolute().parts
            name = parts[-2] if parts[-1] in ("model", "best") else parts[-1]
        if name in found:
            raise InputError(f"two models are called {name!r}; name them: NAME=PATH")
        found[name] = path
    return found


def evaluate(config: Config, models: dict[str, str], split: str, greedy: bool) -> dict[str, Any]:
    """Every model on the same prompts; differences of each to the first. The shape is that of the demo's summary.

    Greedy by default; otherwise the mean over K samples of each prompt, at the config's sampling.
    """
    silence_libraries()
    started = time.perf_counter()
    checker = build.build_checker(config)
    world = World(Accelerator())
    sampling = build.build_sampling(config)
    values = {}
    for name, path in models.items():
        policy = build.build_policy(
            config.model_copy(update={"model": config.model.model_copy(update={"name": path})})
        )
        policy.to(world.device)
        prompts, _ = build.build_prompts(config, policy, split)
        answers = answer(
            policy,
            prompts,
            sampling.greedy() if greedy else sampling,
            world=world,
            prompts_per_pass=max(1, config.train.micro_batch // (1 if greedy else sampling.candidates)),
            seed=config.train.seed,
        )
        values[name] = values_of(answers, prompts, checker)
    first, *others = values
    return {
        "task": config.data.task or config.data.source,
        "seed": config.train.seed,
        "split": split,
        "decoding": "greedy" if greedy else f"{sampling.candidates} samples a prompt",
        "seconds": round(time.perf_counter() - started, 1),
        **summarise(values, [(other, first) for other in others]),
    }
