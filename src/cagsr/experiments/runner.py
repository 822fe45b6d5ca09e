"""Where systems meet: one base, the same held-out prompts, one scoreboard; each run measured once and kept."""

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from cagsr.config import Config
from cagsr.config.schema import Limit, WatchSettings
from cagsr.data import splits
from cagsr.data.preferences import Pair
from cagsr.data.readers import Row
from cagsr.data.row_messages import say_rows
from cagsr.distributed.process_group import World, accelerated
from cagsr.evaluation import metrics_from_config as instruments
from cagsr.evaluation.evaluator import (
    Answers,
    answer,
    best_by_reward,
    measure_signals,
    response_rows,
    values_of,
)
from cagsr.experiments.recipes import carry_out, record_untrained
from cagsr.experiments.results import (
    PREFERENCES,
    RESULT,
    Result,
    as_json,
    read_preferences,
    read_responses,
    read_result,
    stacked,
    write_preferences,
)
from cagsr.experiments.systems import System
from cagsr.experiments.systems.bench import Bench
from cagsr.experiments.systems.recipe import Choose, Recipe, Unchanged
from cagsr.io.atomic_write import write_atomically
from cagsr.io.provenance import identity
from cagsr.io.quiet_libraries import warn
from cagsr.io.terminal import duration, fitting, say
from cagsr.metrics.judge import Preferences
from cagsr.models.build import build_policy
from cagsr.models.policy import Policy
from cagsr.rewards.presets import build_reward
from cagsr.rewards.salience import build_salience
from cagsr.runs.directory import METRICS, RESPONSES, RunDirectory, fingerprint
from cagsr.runs.identity import of_data
from cagsr.tasks.bases import base_name
from cagsr.tasks.checkers import find_checker
from cagsr.training.kl import k1
from cagsr.training.loop import prompts_for
from cagsr.types import Prompt, Rollout

__all__ = ["Arena"]

# Sampled figures stand beside the greedy ones: K samples to every fourth prompt.
SAMPLED_EVERY = 4


class Arena:
    def __init__(self, config: Config, directory: Path, console: Console, accept_changes: bool = False):
        self.config, self.directory, self.console = config, directory, console
        self.accept_changes = accept_changes
        self.world = World(accelerated(mixed_precision=config.train.mixed_precision))
        self.checker = find_checker(config.data)
        self.reward = build_reward(config.reward, self.checker)
        rows = {split: splits.read_rows(config, split) for split in ("heldout", "train")}
        self.base_model = identity(base_name(config), config.model.revision)
        self.base = build_policy(config.replaced({"algorithm.name": "grpo"}))  # it needs no critic
        self.base.to(self.world.device)
        self.prompts = self._prompts("heldout", rows["heldout"])[: config.data.evaluation_count]
        self.training = self._prompts("train", rows["train"])
        self.salience = build_salience(config, self.training)
        pairs, report = splits.build_pairs(config, self.base)
        if pairs:
            say_rows(console, "pairs", report)
        self.human, self.held_out_pairs = self._usable(pairs)
        self.scoreboard = instruments.build_scoreboard(config, self.base, self.checker)
        self.found: dict[str, list[Result]] = {}
        self.preferred: dict[str, list[Preferences]] = {}
        self._first: list[str] | None = None
        self.warnings: dict[str, list[dict[str, Any]]] = {}

    def _prompts(self, split: str, rows: list[Row]) -> list[Prompt]:
        prompts, report = splits.build_prompts(self.config, self.base, split, rows=rows)
        say_rows(self.console, f"{split} prompts", report)
        return prompts

    def _usable(self, pairs: list[Pair]) -> tuple[list[Pair], int]:
        """Pairs without those on prompts that are evaluated on, and how many these were."""
        evaluated = {prompt.text for prompt in self.prompts}
        kept = [pair for pair in pairs if pair.prompt.text not in evaluated]
        return kept, len(pairs) - len(kept)

    def inputs(self) -> dict[str, str]:
        """Hashes of what all runs stand on: they must be the same when a comparison is resumed."""
        weights = (value.detach().cpu().float().numpy().tobytes() for value in self.base.model.parameters())
        return {
            "base": hashlib.sha256(b"".join(weights)).hexdigest(),
            "reward": fingerprint(repr(term) for term in self.reward.terms),
            **of_data(self.training, "training prompts"),
            **of_data(self.prompts, "held-out prompts"),
            "human pairs": fingerprint(
                text for pair in self.human for text in (pair.prompt.text, pair.chosen, pair.rejected)
            ),
        }

    def bench(self, seed: int) -> Bench:
        """What the systems of this seed are given."""
        train, given = self.config.train, self.config.compare
        return Bench(
            base=self.base,
            model=base_name(self.config),
            prompts=[
                prompt
                for step in range(train.steps)
                for prompt in prompts_for(self.training, step, train.prompts_per_step, seed)
            ],
            prompts_per_step=train.prompts_per_step,
            sampling=self.config.sampling,
            reward=self.reward,
            conventional=given.conventional_reward,
            checker=self.checker,
            salience=self.salience,
            human=self.human,
            simulated=given.preferences == "simulated",
            synthetic=given.synthetic_pairs,
            directory=self.directory / "reward-models",
            world=self.world,
            prompts_per_pass=max(1, train.micro_batch // self.config.sampling.candidates),
            seed=seed,
        )

    def measure(self, name: str, system: System, bench: Bench, number: str) -> None:
        """Carry the system out and measure it, or read what was measured before. Raises NotForThisDataError.

        ``number`` says which of how many this is.
        """
        place = f"{number}  {name}, seed {bench.seed}"
        directory = self.directory / name / f"seed-{bench.seed}"
        if not (directory / RESULT).exists():
            with self.console.status(place):
                self._run(name, system, bench, directory)
        result = self._with_people(name, read_result(directory), directory)
        self.found.setdefault(name, []).append(result)
        self.scoreboard.not_measured |= result.not_measured
        self._ask_which_is_better(name, directory)
        warned = [row for row in RunDirectory(directory, "").rows(METRICS) if "warning" in row]
        if warned:
            self.warnings.setdefault(name, []).extend({"seed": bench.seed, **row} for row in warned)
        numbers = [f"{metric} {value.mean():.3f}" for metric, value in list(result.greedy.items())[:3]]
        parts = [place, duration(result.cost["seconds"]), *numbers]
        say(self.console, fitting(parts, self.console.width))
        if failures := result.cost.get("judge_failures"):
            asked = result.cost["judge_asked"]
            warn(
                self.console,
                f"{name}: {failures:.0f} of {asked:.0f} answers of the judge were no rating from 1 to 5",
            )
        if warned:
            more = f", and {len(warned) - 1} more" if len(warned) > 1 else ""
            warn(self.console, f"{name}, {warned[0]['warning']}{more}")

    def _ask_which_is_better(self, name: str, directory: Path) -> None:
        """Where the judge is asked pairwise: this run's responses or those of the first system, the base's."""
        judge = self.config.metrics.judge
        if judge is None or not judge.pairwise:
            return
        responses = read_responses(directory, len(self.prompts))
        if self._first is None:
            self._first = responses
            return
        if not (directory / PREFERENCES).exists():
            said = self.scoreboard.preferences(self.prompts, responses, self._first)
            write_preferences(directory, said)
        self.preferred.setdefault(name, []).append(read_preferences(directory))

    def preferences(self, name: str) -> Preferences:
        """values [seeds P]: 1 where the judge preferred the system's response to the base's; counts over all seeds."""
        said = self.preferred[name]
        return Preferences(
            np.stack([one.values for one in said]),
            sum(one.disagreements for one in said),
            sum(one.failures for one in said),
        )

    def _with_people(self, name: str, result: Result, directory: Path) -> Result:
        """With what people say of the responses; never kept, because people rate what is measured already."""
        if self.scoreboard.ratings is None:
            return result
        said = self.scoreboard.people(name, self.prompts, read_responses(directory, len(self.prompts)))
        return replace(result, opinions=result.opinions | said.values, cost=result.cost | said.counts)

    def _run(self, name: str, system: System, bench: Bench, directory: Path) -> None:
        bench.asked_for_samples, bench.earlier_seconds, sampled_before = False, 0.0, bench.sampling_seconds
        started = time.perf_counter()
        recipe = system(bench)
        seconds = time.perf_counter() - started + bench.earlier_seconds
        greedy, sampled, tokens, trained = self._carry_out(recipe, bench, directory)
        if bench.asked_for_samples:  # shared, so that only the first to ask waited for them
            seconds += sampled_before
            tokens += int(bench.samples.tokens.sum())
        cost = {
            "seconds": round(seconds + trained, 1),
            "generated_tokens": tokens,
            "labels": recipe.labels,
        }
        self._write(directory, greedy, sampled, cost)

    def greedy(self, name: str) -> dict[str, np.ndarray]:
        """metric -> [seeds, P]"""
        return stacked([result.greedy for result in self.found[name]])

    def sampled(self, name: str) -> dict[str, np.ndarray]:
        """metric -> [seeds, Q]; empty for a system that does not sample."""
        return stacked([result.sampled for result in self.found[name]])

    def opinions(self, name: str) -> dict[str, np.ndarray]:
        """metric -> [seeds, P], NaN where nobody had one."""
        return stacked([result.opinions for result in self.found[name]])

    def cost(self, name: str) -> dict[str, float]:
        """Means over seeds: seconds, generated tokens, labels; what was asked of a judge and of people."""
        costs = [result.cost for result in self.found[name]]
        return {key: round(float(np.mean([cost[key] for cost in costs])), 1) for key in costs[0]}

    def _carry_out(
        self, recipe: Recipe, bench: Bench, directory: Path
    ) -> tuple[Answers, Answers | None, int, float]:
        """Greedy and sampled answers of what the recipe makes, the tokens generated for it, seconds of training."""
        config = self.config.replaced(
            {"train.seed": bench.seed, "run.directory": str(directory), "watch": _warning(self.config.watch)}
        )
        if isinstance(recipe, Unchanged | Choose):
            record_untrained(config, self.accept_changes)
        if isinstance(recipe, Unchanged):
            return *self._answers(self.base), 0, 0.0
        if isinstance(recipe, Choose):
            chosen, tokens = self._chosen(bench)
            return chosen, None, tokens, 0.0
        carried = carry_out(recipe, config, Console(quiet=True), self.accept_changes)
        carried.policy.to(self.world.device)
        return *self._answers(carried.policy), carried.tokens, carried.seconds

    def _answers(self, policy: Policy) -> tuple[Answers, Answers]:
        def divergence(rollout: Rollout) -> torch.Tensor:
            return k1(policy.logprobs(rollout), self.base.logprobs(rollout)).sum(-1, keepdim=True)

        sampling, rows = self.config.sampling, self.config.train.micro_batch
        greedy = answer(policy, self.prompts, sampling.greedy(), world=self.world, prompts_per_pass=rows)
        sampled = answer(
            policy,
            self.prompts[::SAMPLED_EVERY],
            sampling,
            world=self.world,
            prompts_per_pass=max(1, rows // sampling.candidates),
            measure=divergence,
        )
        return greedy, sampled

    def _chosen(self, bench: Bench) -> tuple[Answers, int]:
        """The best of K samples for each prompt, and the tokens of all of them: what every use costs."""
        answers = answer(
            self.base,
            self.prompts,
            bench.sampling,
            world=self.world,
            prompts_per_pass=bench.prompts_per_pass,
            seed=bench.seed,
            measure=measure_signals(bench.reward, self.base, self.salience),
        )
        return replace(best_by_reward(answers, bench.reward), signals=None), int(answers.tokens.sum())

    def _write(
        self, directory: Path, greedy: Answers, sampled: Answers | None, cost: dict[str, float]
    ) -> None:
        """responses.jsonl for a reader, result.json for the summary; the second one says that the run is done."""
        values = self.scoreboard.values(self.prompts, greedy)
        opinions = self.scoreboard.judged_by_model(self.prompts, [texts[0] for texts in greedy.responses])
        found: dict[str, np.ndarray] = {}
        if sampled is not None and sampled.signals is not None:
            found = values_of(sampled, self.prompts[::SAMPLED_EVERY], self.checker)
            found["kl"] = sampled.signals[..., 0].mean(1).astype(float)
        rows = response_rows(self.prompts, greedy, values)
        write_atomically(directory / RESPONSES, "".join(json.dumps(row) + "\n" for row in rows))
        content = {
            "greedy": {metric: value.tolist() for metric, value in values.items()},
            "sampled": {metric: value.tolist() for metric, value in found.items()},
            "opinions": {metric: as_json(value) for metric, value in opinions.values.items()},
            "cost": cost | opinions.counts,
            "not_measured": self.scoreboard.not_measured,
        }
        write_atomically(directory / RESULT, json.dumps(content, allow_nan=False) + "\n")


def _warning(watch: WatchSettings) -> WatchSettings:
    """The collapse watch without its stops: a system that collapses is a result."""
    changed = {
        name: limit.model_copy(update={"action": "warn"}) for name, limit in watch if isinstance(limit, Limit)
    }
    return watch.model_copy(update=changed)
