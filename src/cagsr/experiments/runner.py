"""Runs systems on one base, the same held-out prompts and one scoreboard; each run is measured once and kept."""

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from cagsr.config import Config
from cagsr.config.schema import Limit, WatchSettings
from cagsr.data import splits
from cagsr.data.readers import Row
from cagsr.data.row_messages import say_few, say_rows
from cagsr.distributed.process_group import World, accelerated
from cagsr.errors import InputError
from cagsr.evaluation import metrics_from_config as instruments
from cagsr.evaluation.chosen_reward import choose_reward
from cagsr.evaluation.evaluator import Answers, answer, best_by_reward, response_rows, values_of
from cagsr.evaluation.learnt_heads import HEADS, keep_heads
from cagsr.experiments.recipes import train_recipe
from cagsr.experiments.results import (
    PREFERENCES,
    RESULT,
    Result,
    Results,
    read_kept,
    read_responses,
    write_kept,
)
from cagsr.experiments.systems import System
from cagsr.experiments.systems.bench import Bench
from cagsr.experiments.systems.recipe import Choose
from cagsr.io.adapters import identity_with_base
from cagsr.io.atomic_write import write_atomically
from cagsr.io.quiet_libraries import warn
from cagsr.io.terminal import duration, fitting, say
from cagsr.metrics.judge import Preferences
from cagsr.models.build import build_policy, check_sampling
from cagsr.models.policy import Policy
from cagsr.rewards.presets import build_reward
from cagsr.runs.directory import METRICS, RESPONSES, RunDirectory, fingerprint
from cagsr.runs.identity import of_data, of_model
from cagsr.tasks.bases import base_name
from cagsr.tasks.checkers import find_checker
from cagsr.training.kl import k1
from cagsr.training.prompt_order import prompts_for
from cagsr.types import Prompt, Rollout

__all__ = ["ComparisonRunner"]

# Sampled figures stand beside the greedy ones: K samples to every fourth prompt.
SAMPLED_EVERY = 4


class ComparisonRunner:
    """Runs systems one after the other on the same base, prompts and scoreboard, and measures each once.

    ``results`` holds what was measured, now or before a comparison was resumed.
    """

    def __init__(self, config: Config, directory: Path, console: Console, accept_changes: bool = False):
        self.config = config
        self.directory, self.console = directory, console
        self.accept_changes, self.results = accept_changes, Results()
        self.world = World(accelerated(mixed_precision=config.train.mixed_precision))
        self.checker = find_checker(config.data)
        rows = {split: splits.read_rows(config, split) for split in ("heldout", "train")}
        instruments.check_rows(config, rows["heldout"])
        self.base_model = identity_with_base(base_name(config), config.model.revision)
        self.base = build_policy(config.replaced({"algorithm.name": "grpo"}))  # it needs no critic
        check_sampling(self.base, console)
        self.base.to(self.world.device)
        self.prompts = self._prompts("heldout", rows["heldout"])[: config.data.evaluation_count]
        self.training = self._prompts("train", rows["train"])
        # Controls are given the heads and the pieces of the reward that they are compared with.
        self.config, self.salience, self.heads = choose_reward(
            self.base,
            config,
            self.training,
            self.world,
            console,
            kept=directory / HEADS,
            model=of_model(base_name(config), config.model.revision),
        )
        self.reward = build_reward(self.config.reward, self.checker)
        pairs, report = splits.build_pairs(config, self.base)
        if pairs:
            say_rows(console, "pairs", report)
        evaluated = {prompt.text for prompt in self.prompts}
        self.human = [pair for pair in pairs if pair.prompt.text not in evaluated]
        self.held_out_pairs = len(pairs) - len(self.human)
        self.scoreboard = instruments.build_scoreboard(config, self.base, self.checker)
        self._base_responses: list[str] | None = None
        if len(self.prompts) < 2:
            raise InputError(
                "cagsr compare tells systems apart by how they differ from prompt to prompt, and only one is held out; "
                "name more (data.evaluation_source, data.evaluation_count)"
            )
        say_few(console, len(self.prompts))

    def keep_heads(self) -> None:
        """Keep what heads were learnt, on the base, in the comparison that has begun; all systems read these."""
        kept = self.directory / HEADS
        keep_heads(self.heads, kept)
        if self.config.reward.heads == "learn":
            self.config = self.config.replaced({"reward.heads": str(kept)})

    def _prompts(self, split: str, rows: list[Row]) -> list[Prompt]:
        prompts, report = splits.build_prompts(self.config, self.base, split, rows=rows)
        say_rows(self.console, f"{split} prompts", report)
        return prompts

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

    def run(self, name: str, system: System, bench: Bench, number: str) -> None:
        """Train and measure a system, or read what was measured before. Raises NotForThisDataError.

        ``number`` says which of how many this is.
        """
        place = f"{number}  {name}, seed {bench.seed}"
        directory = self.directory / name / f"seed-{bench.seed}"
        if not (directory / RESULT).exists():
            with self.console.status(place):
                self._measure(system, bench, directory)
        result = self._with_judge(read_kept(directory / RESULT, Result), directory)
        if self.scoreboard.ratings is not None:  # never kept, because people rate what is measured already
            said = self.scoreboard.people(name, self.prompts, read_responses(directory, len(self.prompts)))
            result = replace(result, opinions=result.opinions | said.values, cost=result.cost | said.counts)
        self.results.found.setdefault(name, []).append(result)
        self.scoreboard.not_measured |= result.not_measured
        self._ask_which_is_better(name, directory)
        warned = [row for row in RunDirectory(directory, "").rows(METRICS) if "warning" in row]
        if warned:
            rows = [{"seed": bench.seed, **row} for row in warned]
            self.results.warnings.setdefault(name, []).extend(rows)
        numbers = [f"{metric} {value.mean():.3f}" for metric, value in list(result.greedy.items())[:3]]
        parts = [place, duration(result.cost["seconds"]), *numbers]
        say(self.console, fitting(parts, self.console.width))
        if failures := result.cost.get("judge_failures"):
            asked = result.cost["judge_asked"]
            unread = f"{failures:.0f} of {asked:.0f} answers of the judge were no rating from 1 to 5"
            warn(self.console, f"{name}: {unread}")
        if warned:
            more = f", and {len(warned) - 1} more" if len(warned) > 1 else ""
            warn(self.console, f"{name}, {warned[0]['warning']}{more}")

    def _ask_which_is_better(self, name: str, directory: Path) -> None:
        """Where the judge is asked pairwise: this run's responses or those of the first system, the base's."""
        judge = self.config.metrics.judge
        if judge is None or not judge.pairwise:
            return
        responses = read_responses(directory, len(self.prompts))
        if self._base_responses is None:
            self._base_responses = responses
            return
        if not (directory / PREFERENCES).exists():
            said = self.scoreboard.preferences(self.prompts, responses, self._base_responses)
            if said is None:
                return
            write_kept(directory / PREFERENCES, said)
        self.results.preferred.setdefault(name, []).append(read_kept(directory / PREFERENCES, Preferences))

    def _with_judge(self, result: Result, directory: Path) -> Result:
        """With the ratings of a judge that had failed when the result was kept, if it answers now."""
        if (
            "judge" not in result.not_measured
            or self.scoreboard.judge is None
            or self.scoreboard.judge_failed
        ):
            return result
        said = self.scoreboard.judged_by_model(self.prompts, read_responses(directory, len(self.prompts)))
        if not self.scoreboard.judge_failed:
            reasons = {metric: why for metric, why in result.not_measured.items() if metric != "judge"}
            result = replace(
                result,
                opinions=result.opinions | said.values,
                cost=result.cost | said.counts,
                not_measured=reasons,
            )
            write_kept(directory / RESULT, result)
        return result

    def _measure(self, system: System, bench: Bench, directory: Path) -> None:
        """Train as the system says and answer the held-out prompts; what was measured is kept in ``directory``."""
        bench.asked_for_samples, bench.earlier_seconds, sampled_before = False, 0.0, bench.sampling_seconds
        started = time.perf_counter()
        recipe = system(bench)
        seconds = time.perf_counter() - started + bench.earlier_seconds
        config = self.config.replaced(
            {"train.seed": bench.seed, "run.directory": str(directory), "watch": _warning(self.config.watch)}
        )
        trained = train_recipe(recipe, self.base, config, self.accept_changes)
        tokens = trained.tokens
        if bench.asked_for_samples:  # shared, so that only the first to ask waited for them
            seconds += sampled_before
            tokens += int(bench.samples.tokens.sum())
        if isinstance(recipe, Choose):
            candidates = bench.sampled(self.prompts)
            greedy, sampled = replace(best_by_reward(candidates, bench.reward), signals=None), None
            tokens += int(candidates.tokens.sum())  # what every use costs
        else:
            greedy, sampled = self._answers(trained.policy.to(self.world.device))
        cost = {
            "seconds": round(seconds + trained.seconds, 1),
            "generated_tokens": tokens,
            "labels": recipe.labels,
        }
        self._keep(directory, greedy, sampled, cost)

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

    def _keep(
        self, directory: Path, greedy: Answers, sampled: Answers | None, cost: dict[str, float]
    ) -> None:
        """responses.jsonl for a reader, result.json for the summary; the second one says that the run is done."""
        values = self.scoreboard.values(self.prompts, greedy)
        found: dict[str, np.ndarray] = {}
        if sampled is not None and sampled.signals is not None:
            found = values_of(sampled, self.prompts[::SAMPLED_EVERY], self.checker)
            found["kl"] = sampled.signals[..., 0].mean(1).astype(float)
        rows = response_rows(self.prompts, greedy, values)
        write_atomically(directory / RESPONSES, "".join(json.dumps(row) + "\n" for row in rows))
        opinions = self.scoreboard.judged_by_model(self.prompts, [texts[0] for texts in greedy.responses])
        not_measured = self.scoreboard.not_measured
        kept = Result(values, found, opinions.values, cost | opinions.counts, not_measured)
        write_kept(directory / RESULT, kept)


def _warning(watch: WatchSettings) -> WatchSettings:
    """The collapse watch without its stops: a system that collapses is a result."""
    changed = {
        name: limit.model_copy(update={"action": "warn"}) for name, limit in watch if isinstance(limit, Limit)
    }
    return watch.model_copy(update=changed)
