"""Checkpoints of a run: written atomically with a manifest, verified before they are loaded, the newest few kept.

A save goes to a staging directory beside its place, is hashed, forced to the disk, and renamed, so that no name stands
for half a save. Resuming starts from the newest one that matches its manifest, and says which ones it left out.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.checkpointing import load_accelerator_state, save_accelerator_state
from safetensors import safe_open
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from cagsr.distributed.fsdp import all_finite, is_sharded, load_state
from cagsr.distributed.process_group import World
from cagsr.distributed.shard_files import has_shards, load_shards, save_shards
from cagsr.errors import InputError, NumericsError, StorageError
from cagsr.io import manifest as seal
from cagsr.io.atomic_write import storing, sync_directory

__all__ = ["Checkpoints", "demand_sealed", "forward"]

STATE = "cagsr.json"
# Steps that are done, and optimizer steps of the one after them. Names sort as they were written.
NAME = re.compile(r"step-(\d{6,})(?:-update-(\d{4,}))?")


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, ``run`` by id, in ``root``; the ``keep`` newest stay.

    ``say`` is told of every checkpoint that was left out and why. ``before`` is called ahead of every save: what was
    recorded of the steps up to there must be as safe as the checkpoint.
    """

    accelerator: Accelerator
    root: Path
    run: str
    keep: int = 2
    say: Callable[[str], object] = lambda message: None
    before: Callable[[], object] = lambda: None

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        update: int = 0,
        buffer: Callable[[Path], object] | None = None,
    ) -> Path:
        """Write checkpoint ``step-000100`` (``step-000100-update-0003`` inside a step) with all that resuming needs.

        Weights, optimizer and random numbers of every process are Accelerate's (`Accelerator.save_state`), which
        reads them back without running code from them; weights and moments in shards are torch's
        (`distributed.shard_files`). ``state`` is ours, as JSON: the schedule, and what else
        cannot be computed again from the config and the step. ``buffer`` writes this process's part of an unfinished
        step into the directory that it is given.
        Of a model with frozen weights only the others are kept: the run's identity says which base they stand on.

        All processes have saved or none has. Raises StorageError, the earlier checkpoints untouched, and
        NumericsError for weights that are not finite.
        """
        self._check_weights(step)
        name = f"step-{step:06d}" + (f"-update-{update:04d}" if update else "")
        final, staging = self.root / name, self.root / f".staging-{self.run}"

        def begin() -> None:
            self.before()
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            sync_directory(self.root.parent)

        def write() -> None:
            self._save_state(staging)
            if buffer is not None:
                buffer(staging)

        def finish() -> None:
            text = json.dumps({**state, "step": step, "update": update})
            (staging / STATE).write_text(text, encoding="utf-8")
            seal.seal(staging, run=self.run, step=step, update=update)
            self._put_in_place(staging, final)

        try:
            self._all_or_none(begin, final, everywhere=False)
            self._all_or_none(write, final)
            self._all_or_none(finish, final, everywhere=False)
        except StorageError:
            if self.accelerator.is_main_process:  # what was written of it takes up room
                shutil.rmtree(staging, ignore_errors=True)
            raise
        return final

    def _put_in_place(self, staging: Path, final: Path) -> None:
        """Rename a save to its final name; a checkpoint that has that name already is renamed first."""
        aside, number = final.with_name(f"aside-{final.name}"), 1
        while aside.exists():
            aside, number = final.with_name(f"aside-{final.name}-{number}"), number + 1
        replaced = final.rename(aside) if final.exists() else None
        staging.rename(final)
        sync_directory(self.root)
        if replaced is not None and self._problem(replaced) is None:
            seal.remove(replaced)  # the same step of this run, saved anew
        self._prune(final)

    def newest(self) -> Path | None:
        """The newest checkpoint that matches its manifest; None before the first. Every process gets the same answer.

        What is left out is said. It stays where it is until the continuation needs its name. Raises StorageError
        where there are checkpoints of this run and none of them holds: beginning again would drop what is recorded.
        """
        found: str | None = None
        left_out = []
        if self.accelerator.is_main_process:
            for path in reversed(_named(self.root)):
                problem = self._problem(path)
                if problem is None:
                    found = path.name
                    break
                self.say(f"checkpoint {path.name} is left out: {problem}")
                left_out += [path.name] if self._is_theirs(path) is None else []
            if left_out and found is None:
                raise StorageError(
                    f"{self.root}: no checkpoint is as it was written ({', '.join(left_out)}). Bring one back from a "
                    "copy, or move them away to begin this run again."
                )
        name = World(self.accelerator).from_main(found)
        return None if name is None else self.root / name

    def load(self, path: Path) -> dict[str, Any]:
        """Restore weights, optimizer state and random numbers; returns the ``state`` that was saved.

        Rates and decay stay those that the optimizer was made with: they are the config's. Call it with what `newest`
        returned. A process that there was none of then keeps its random numbers, which only code of the user's draws
        from. Raises InputError for a checkpoint that does not fit the model as it is configured now.
        """
        groups = [group for optimizer in self.accelerator._optimizers for group in optimizer.param_groups]
        configured = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        try:
            self._load_state(path)
        except (RuntimeError, ValueError, KeyError) as error:
            why = (str(error).splitlines() or [""])[0]
            raise InputError(
                f"{path} does not fit the model as it is configured now ({why}). Use the config that it was started "
                "with, or another run.directory."
            ) from error
        groups = [group for optimizer in self.accelerator._optimizers for group in optimizer.param_groups]
        for group, settings in zip(groups, configured, strict=True):
            group.update(settings)
        return json.loads((path / STATE).read_text(encoding="utf-8"))

    def _demand_trained(self, path: Path) -> None:
        """Raise ValueError where frozen weights are left out and a trained one is missing."""
        if not self._frozen():
            return
        with safe_open(path / "model.safetensors", "pt") as file:
            held = set(file.keys())
        for model in self.accelerator._models:
            for name, weight in model.named_parameters():
                if weight.requires_grad and name not in held:
                    raise ValueError(f"it has no {name}")

    def _problem(self, path: Path) -> str | None:
        return self._is_theirs(path) or seal.damage(path)

    def _is_theirs(self, path: Path) -> str | None:
        """The message that a checkpoint is another run's; None for one of this run and where it cannot be told."""
        try:
            owner = seal.manifest(path).get("run")
        except ValueError:
            return None
        return None if owner == self.run else f"it is of run {owner}, and this is {self.run}"

    def _check_weights(self, step: int) -> None:
        """Raise NumericsError for weights that are not finite, which a step with a finite loss can leave."""
        for model in self.accelerator._models:
            for name, weight in model.named_parameters():
                if weight.requires_grad and not all_finite(weight):
                    raise NumericsError(
                        f"step {step}: the weights {name} are not finite any more; nothing was saved. Go on from the "
                        "last checkpoint with a smaller train.learning_rate (--resume --accept-changes)."
                    )

    def _frozen(self) -> bool:
        return any(
            not weight.requires_grad for model in self.accelerator._models for weight in model.parameters()
        )

    def _load_state(self, path: Path) -> None:
        models, optimizers = self.accelerator._models, self.accelerator._optimizers
        if has_shards(path):
            demand_sealed(path)
            load_shards(self.accelerator.unwrap_model(models[0]), optimizers[0], path)
        elif any(map(is_sharded, models)):
            load_state(models[0], optimizers[0], path)
        else:
            self._demand_trained(path)
            self.accelerator.load_state(str(path), strict=not self._frozen())
            return
        load_accelerator_state(str(path), [], [], [], [], self.accelerator.process_index)

    def _save_state(self, staging: Path) -> None:
        models, optimizers = self.accelerator._models, self.accelerator._optimizers
        if any(map(is_sharded, models)):
            save_shards(models[0], optimizers[0], staging)
            numbers = (self.accelerator.process_index, self.accelerator.step)
            save_accelerator_state(str(staging), [], [], [], [], *numbers)
            return
        hook = self.accelerator.register_save_state_pre_hook(_without_frozen) if self._frozen() else None
        try:
            self.accelerator.save_state(str(staging))
        finally:
            if hook is not None:
                hook.remove()

    def _all_or_none(self, act: Callable[[], None], final: Path, everywhere: bool = True) -> None:
        """Run ``act`` in every process, or in the main one; raises StorageError in all of them when one could not."""
        problem = None
        if everywhere or self.accelerator.is_main_process:
            try:
                with storing(final):
                    act()
            except StorageError as error:
                problem = error
        failed = World(self.accelerator).total(torch.tensor(float(problem is not None)))
        if failed:
            what = str(problem or f"{final} could not be written by another process")
            raise StorageError(f"{what}. The earlier checkpoints are untouched.") from problem

    def _prune(self, newest: Path) -> None:
        """Delete this run's checkpoints beyond the ``keep`` newest, and never the one that has just been sealed."""
        mine = []
        for path in _named(self.root):
            try:
                if seal.manifest(path).get("run") == self.run:
                    mine.append(path)
            except ValueError:  # not finished, or not one of ours
                continue
        for old in mine[: mine.index(newest) + 1][: -self.keep]:
            seal.remove(old)


def demand_sealed(path: Path) -> None:
    """Raise StorageError for files in a checkpoint that it was not written with: shards are read by what lies there."""
    known = set(seal.sealed_files(path))
    for file in sorted(path.rglob("*")):
        if file.is_file() and file not in known:
            raise StorageError(f"{file} is not of this checkpoint; remove it")


def forward(scheduler: LRScheduler, updates: int) -> None:
    """Advance a scheduler that has just been made to where ``updates`` steps would have brought it.

    Differs: from loading its state, which would bring the old rate back where a new one was asked for.
    """
    scheduler.last_epoch = updates
    scheduler._step_count = updates + 1
    factors = scheduler.lr_lambdas  # type: ignore[attr-defined] # get_scheduler makes LambdaLR only
    rates = [base * factor(updates) for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def _named(root: Path) -> list[Path]:
    """Directories named like checkpoints, oldest first."""
    found = []
    for path in root.glob("step-*"):
        match = NAME.fullmatch(path.name)
        if match and path.is_dir():
            found.append((int(match[1]), int(match[2] or 0), path))
    return [path for *_, path in sorted(found)]


def _without_frozen(models: list[torch.nn.Module], weights: list[dict[str, Tensor]], directory: str) -> None:
    """Accelerate's save hook: remove frozen weights from ``weights``, under every name they have. Buffers stay.

    What belongs to a quantised weight (its scales) goes with it.
    """
    for model, state in zip(models, weights, strict=True):
        named = model.named_parameters(remove_duplicate=False)
        frozen = {name for name, weight in named if not weight.requires_grad}
        for key in [*state]:
            if key in frozen or key.rpartition(".weight.")[0] + ".weight" in frozen:
                del state[key]
