"""Base models: those that ship with the generated tasks, and the one that a config names."""

from pathlib import Path

from cagsr.config import Config
from cagsr.errors import InputError

__all__ = ["BASES", "base_name", "base_of"]

BASES = Path(__file__).parent / "base_models"


def base_of(task: str) -> str:
    """Directory of the base model that ships with a task. Raises InputError for a task without one."""
    path = BASES / task
    if not path.is_dir():
        raise InputError(
            f"model.name: no base ships for the task {task!r}. Train one with `cagsr sft data.task={task} "
            f"sft.scratch.layers=3 sft.directory=runs/{task}-base` and set model.name=runs/{task}-base/model."
        )
    return str(path)


def base_name(config: Config) -> str:
    """Directory or hub name of the model that training starts from."""
    return config.model.name or base_of(str(config.data.task))
