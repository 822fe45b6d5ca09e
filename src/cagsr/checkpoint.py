"""Checkpoints: written beside the run and moved into place whole, so that a name never means half a save."""

import json
import shutil
from pathlib import Path

from accelerate import Accelerator

from cagsr.errors import StorageError

__all__ = ["load", "newest", "save"]

STATE = "cagsr.json"


def save(accelerator: Accelerator, root: Path, step: int, state: dict, keep: int) -> Path:
    """``root/step-000100`` with everything a continuation needs; the ``keep`` newest stay.

    Weights, optimizer, scheduler and RNG states are Accelerate's (`Accelerator.save_state`); ``state`` is ours:
    what cannot be computed again from the config and the step. Sampling draws its numbers from the seed, the step
    and the prompt, and the order of prompts from the seed, so neither has a position to be saved.
    """
    final = root / f"step-{step:06d}"
    staging = root / f".staging-{final.name}"
    try:
        if accelerator.is_main_process:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(staging))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (staging / STATE).write_text(json.dumps({**state, "step": step}), encoding="utf-8")
            shutil.rmtree(final, ignore_errors=True)
            staging.rename(final)
            for old in checkpoints(root)[:-keep]:
                shutil.rmtree(old)
    except OSError as error:
        raise StorageError(
            f"checkpoint {final} could not be written: {error}. The earlier ones are untouched; make room and "
            "continue with --resume."
        ) from error
    accelerator.wait_for_everyone()
    return final


def checkpoints(root: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in root.glob("step-*") if (path / STATE).is_file())


def newest(root: Path) -> Path | None:
    """The newest whole checkpoint, None when the run stopped before its first."""
    return next(reversed(checkpoints(root)), None)


def load(accelerator: Accelerator, path: Path) -> dict:
    """Put weights, optimizer, scheduler and RNG states back; returns the ``state`` that was saved."""
    accelerator.load_state(str(path))
    return json.loads((path / STATE).read_text(encoding="utf-8"))
