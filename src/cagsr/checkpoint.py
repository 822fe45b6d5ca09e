"""Checkpoints: sealed when they are written, verified before they are believed, and never lost to a newer one.

A save goes to a staging directory beside its place, is hashed, forced to the disk, and renamed: a name never means
half a save. A continuation starts from the newest whose seal holds, and says what it left out.
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
from torch import Tensor

from cagsr import seal
from cagsr.errors import NumericsError, StorageError
from cagsr.storage import storing, sync_directory
from cagsr.world import World

__all__ = ["Checkpoints"]

STATE = "cagsr.json"
# Steps that are done, and optimizer steps of the one after them. Names sort as they were written.
NAME = re.compile(r"step-(\d{6,})(?:-update-(\d{4,}))?")


def _silent(message: str) -> None:
    pass


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, ``run`` by id, in ``root``; the ``keep`` newest stay.

    ``say`` is told of every checkpoint that was left out and why.
    """

    accelerator: Accelerator
    root: Path
    run: str
    keep: int = 2
    say: Callable[[str], None] = _silent

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        update: int = 0,
        buffer: Callable[[Path], object] | None = None,
    ) -> Path:
        """``step-000100`` (``step-000100-update-0003`` inside a step) with all that a continuation needs.

        Weights, optimizer and random numbers of every process are Accelerate's (`Accelerator.save_state`), which
        reads them back without running code from them. ``state`` is ours, as JSON: the schedule, and what else
        cannot be computed again from the config and the step. ``buffer`` writes this process's part of an unfinished
        step into the directory that it is given.
        Of a model with frozen weights only the others are kept: the run's identity says which base they stand on.

        All processes have saved or none has. Raises StorageError, the earlier checkpoints untouched, and
        NumericsError for weights that are not finite.
        """
        self._check_weights(step)
        final, staging = self.root / _name(step, update), self.root / f".staging-{self.run}"

        def begin() -> None:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)

        def write() -> None:
            self._save_state(staging)
            if buffer is not None:
                buffer(staging)

        def finish() -> None:
            text = json.dumps({**state, "step": step, "update": update})
            (staging / STATE).write_text(text, encoding="utf-8")
            seal.seal(staging, run=self.run, step=step, update=update)
            self._set_aside(final)
            staging.rename(final)
            sync_directory(self.root)
            self._prune(final)

        try:
            self._all_or_none(begin, final, everywhere=False)
            self._all_or_none(write, final)
            self._all_or_none(finish, final, everywhere=False)
        except StorageError:
            if self.accelerator.is_main_process:  # what is there of it takes up room
                shutil.rmtree(staging, ignore_errors=True)
            raise
        return final

    def newest(self) -> Path | None:
        """The newest whose seal holds; None when there is none. Every process gets the same answer.

        What is left out is said. It stays where it is until the continuation needs its name.
        """
        found: str | None = None
        if self.accelerator.is_main_process:
            for path in reversed(_named(self.root)):
                problem = self._problem(path)
                if problem is None:
                    found = path.name
                    break
                self.say(f"checkpoint {path.name} is left out: {problem}")
        name = World(self.accelerator).from_main(found)
        return None if name is None else self.root / name

    def load(self, path: Path) -> dict[str, Any]:
        """Put weights, optimizer and random numbers back; returns the ``state`` that was saved.

        Call it with what `newest` returned. Raises StorageError for a checkpoint that was made by another number of
        processes.
        """
        mine = f"random_states_{self.accelerator.process_index}.pkl"
        if mine not in seal.manifest(path)["files"]:
            raise StorageError(
                f"{path} was saved by fewer processes than there are now; start as many as then"
            )
        self.accelerator.load_state(str(path), strict=not self._frozen())
        return json.loads((path / STATE).read_text(encoding="utf-8"))

    def _problem(self, path: Path) -> str | None:
        try:
            owner = seal.manifest(path)["run"]
        except (ValueError, KeyError) as error:
            return str(error)
        return seal.damage(path) if owner == self.run else f"it is of run {owner}, and this is {self.run}"

    def _check_weights(self, step: int) -> None:
        """A step can be finite and still leave weights that are not."""
        for model in self.accelerator._models:
            for name, weight in model.named_parameters():
                if weight.requires_grad and not torch.isfinite(weight).all():
                    raise NumericsError(
                        f"step {step}: the weights {name} are not finite any more; nothing was saved. Go on from the "
                        "last checkpoint with a smaller train.learning_rate (--resume --accept-changes)."
                    )

    def _frozen(self) -> bool:
        return any(
            not weight.requires_grad for model in self.accelerator._models for weight in model.parameters()
        )

    def _save_state(self, staging: Path) -> None:
        hook = self.accelerator.register_save_state_pre_hook(_without_frozen) if self._frozen() else None
        try:
            self.accelerator.save_state(str(staging))
        finally:
            if hook is not None:
                hook.remove()

    def _all_or_none(self, act: Callable[[], None], final: Path, everywhere: bool = True) -> None:
        """Do it in every process, or in the main one; raises StorageError in all when one of them could not."""
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

    def _set_aside(self, path: Path) -> None:
        """Somebody else's, or one that was left out: it makes room and keeps its content."""
        aside, number = path.with_name(f"aside-{path.name}"), 1
        while aside.exists():
            aside, number = path.with_name(f"aside-{path.name}-{number}"), number + 1
        if path.exists():
            path.rename(aside)

    def _prune(self, newest: Path) -> None:
        """Older ones beyond ``keep``, only what this run wrote, and never the one that has just been sealed."""
        mine = []
        for path in _named(self.root):
            try:
                if seal.manifest(path).get("run") == self.run:
                    mine.append(path)
            except ValueError:  # not finished, or not one of ours
                continue
        for old in mine[: mine.index(newest) + 1][: -self.keep]:
            seal.remove(old)


def _name(step: int, update: int) -> str:
    return f"step-{step:06d}" + (f"-update-{update:04d}" if update else "")


def _named(root: Path) -> list[Path]:
    """What looks like a checkpoint, oldest first."""
    found = []
    for path in root.glob("step-*"):
        match = NAME.fullmatch(path.name)
        if match and path.is_dir():
            found.append((int(match[1]), int(match[2] or 0), path))
    return [path for *_, path in sorted(found)]


def _without_frozen(models: list[torch.nn.Module], weights: list[dict[str, Tensor]], directory: str) -> None:
    """Accelerate's hook: take out of ``weights`` what is not trained, under every name it has. Buffers stay."""
    for model, state in zip(models, weights, strict=True):
        for name, weight in model.named_parameters(remove_duplicate=False):
            if not weight.requires_grad:
                state.pop(name, None)
