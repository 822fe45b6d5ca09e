"""What every system is given: the base, the prompts it may ask, and what else this data has."""

__all__ = ["Bench"]

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from random import Random

import numpy as np
import torch

from cagsr.config.schema import Sampling
from cagsr.data.preferences import Pair
from cagsr.distributed.process_group import World
from cagsr.evaluation.evaluator import Answers, answer, measure_signals
from cagsr.experiments.systems.recipe import NotForThisDataError
from cagsr.models.policy import Policy
from cagsr.rewards.reward import Reward
from cagsr.rewards.salience import Salience
from cagsr.tasks.task import Checker
from cagsr.training.reward_model import OUTCOME, train_reward_model
from cagsr.types import Prompt

# Of 10 pairs three passes would be two updates: such a reward model has learnt nothing yet.
LEAST_UPDATES = 40
EPOCHS = 3
PAIRS_A_STEP = 16
PAIRS_TO_HOLD_OUT = 50


@dataclass
class Bench:
    """The same for every system of one seed.

    base, model     the base, and the directory or name it was loaded from
    prompts         what reinforcement learning will ask, in its order: ``steps * prompts_per_step`` of them
    reward          the attention reward that is compared
    conventional    the signal that a policy gradient is trained on
    human           preference pairs of people; empty where there are none
    simulated       instead of people the checker prefers, one pair of the base's samples a prompt
    synthetic       how many pairs may be made without people
    directory       where reward models are written

    Samples are drawn once and shared. What they cost belongs to every system that asked for them:
    ``asked_for_samples`` tells, and ``sampling_seconds`` how long they took. ``earlier_seconds`` is what reward models
    took that were trained before this comparison was stopped.
    """

    base: Policy
    model: str
    prompts: list[Prompt]
    prompts_per_step: int
    sampling: Sampling
    reward: Reward
    conventional: str
    checker: Checker | None
    salience: Salience
    human: list[Pair]
    simulated: bool
    synthetic: int
    directory: Path
    world: World
    prompts_per_pass: int
    seed: int
    asked_for_samples: bool = False
    sampling_seconds: float = 0.0
    earlier_seconds: float = 0.0

    @cached_property
    def references(self) -> list[str]:
        """One reference a prompt. Raises NotForThisDataError where a prompt has none."""
        found = [
            prompt.row.get("reference") or (prompt.row.get("references") or [None])[0]
            for prompt in self.prompts
        ]
        if not all(isinstance(text, str) and text.strip() for text in found):
            raise NotForThisDataError("no references")
        return [str(text) for text in found]

    @property
    def distinct_prompts(self) -> int:
        """How many prompts are labelled where each needs one label, however often it is asked."""
        return len({prompt.index for prompt in self.prompts})

    @property
    def samples(self) -> Answers:
        """K candidates of the base to every prompt: as many as reinforcement learning samples, all of one model."""
        self.asked_for_samples = True
        return self._samples

    @cached_property
    def _samples(self) -> Answers:
        started = time.perf_counter()
        answers = self.sampled(self.prompts)
        self.sampling_seconds = time.perf_counter() - started
        return answers

    def sampled(self, prompts: Sequence[Prompt]) -> Answers:
        """K samples of the base for each of these prompts, with the signals of the reward."""
        return answer(
            self.base,
            prompts,
            self.sampling,
            world=self.world,
            prompts_per_pass=self.prompts_per_pass,
            seed=self.seed,
            measure=measure_signals(self.reward, self.base, self.salience),
        )

    @cached_property
    def rewards(self) -> np.ndarray:
        """[P K] the attention reward of every sample, standardised in its group."""
        signals = self.samples.signals
        assert signals is not None, "samples are measured"
        flat = torch.from_numpy(signals).flatten(0, 1)
        return self.reward.combine(flat, signals.shape[1]).view(signals.shape[:2]).numpy()

    def best(self) -> list[str]:
        """The sample of highest attention reward for each prompt."""
        return [texts[k] for texts, k in zip(self.samples.responses, self.rewards.argmax(1), strict=True)]

    def worst(self) -> list[str]:
        """The sample of lowest attention reward for each prompt."""
        return [texts[k] for texts, k in zip(self.samples.responses, self.rewards.argmin(1), strict=True)]

    def people(self, count: int | None = None) -> list[Pair]:
        """``count`` human pairs, drawn by the seed; all of them for None. Raises NotForThisDataError."""
        pairs = self._simulated_pairs if self.simulated else self.human
        if not pairs or (count is not None and count > len(pairs)):
            raise NotForThisDataError(f"{len(pairs)} human pairs" if pairs else "no human pairs")
        return Random(f"pairs {self.seed}").sample(pairs, len(pairs))[:count]

    @cached_property
    def _simulated_pairs(self) -> list[Pair]:
        checker = self.checker
        if checker is None:
            raise NotForThisDataError("no checker that could stand for people")
        pairs = []
        for prompt, texts in zip(self.prompts, self.samples.responses, strict=True):
            ordered = sorted(texts, key=partial(checker.quality, prompt.row))
            first, second = Random(f"{self.seed} {prompt.index}").sample(range(len(texts)), 2)
            worse, better = ordered[min(first, second)], ordered[max(first, second)]
            if checker.quality(prompt.row, worse) < checker.quality(prompt.row, better):
                pairs.append(Pair(prompt, better, worse))
        return pairs

    def reward_model(self, name: str, pairs: Sequence[Pair]) -> str:
        """Directory of a reward model trained on ``pairs``; an earlier one of this seed is used again.

        Few pairs are seen as often as many, and are too few to hold any out.
        """
        directory = self.directory / f"{name}-seed-{self.seed}"
        outcome = directory / OUTCOME
        if outcome.exists():
            self.earlier_seconds += json.loads(outcome.read_text(encoding="utf-8"))["seconds"]
        else:
            held_out = 0.2 if len(pairs) >= PAIRS_TO_HOLD_OUT else 0.0
            steps = max(LEAST_UPDATES, EPOCHS * len(pairs) // PAIRS_A_STEP)
            train_reward_model(
                self.model,
                list(pairs),
                directory,
                steps=steps,
                batch_size=PAIRS_A_STEP,
                held_out=held_out,
                seed=self.seed,
            )
        return str(directory)
