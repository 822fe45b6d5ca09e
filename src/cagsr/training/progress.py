"""Progress display of a run: a progress bar in a terminal, plain lines in a log."""

import time
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from cagsr.io.terminal import duration, fitting, said, say, wrapped
from cagsr.training.step import Collected

__all__ = ["Clock", "Display", "bar", "step_numbers"]


def step_numbers(row: dict[str, float]) -> list[str]:
    """The metrics of a step for display, in the order in which they go wrong: reward, KL, text, then the signals."""
    return [
        f"reward {row['reward']:.3g}",
        f"kl {row['kl']:.3f}",
        f"length {row['length']:.1f}",
        f"repeated {row['repetition']:.2f}",
        f"entropy {row['entropy']:.2f}",
        f"spread {row['reward_spread']:.2g}",
        f"{row['tokens_per_second']:.0f} tok/s",
        *(
            f"{name.removeprefix('signal/')} {value:.3g}"
            for name, value in row.items()
            if name.startswith("signal/")
        ),
    ]


def bar(console: Console, name: str) -> "_Moving":
    """A progress bar that disappears when it ends, with its task's ``numbers`` below it; nothing in a log."""
    return _Moving(
        TextColumn(f"[bold]{name}[/]"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_interactive,
    )


class _Moving(Progress):
    """Progress bar with the numbers below it, on as many lines as the terminal's width asks for."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            yield Text(wrapped(task.fields["numbers"], self.console.width, indent="  "), style="dim")


class Clock:
    """Estimate of the time that the remaining steps take, by the mean of those so far. Asked after every step."""

    def __init__(self, steps: int):
        self.steps = steps
        self.first: int | None = None
        self.started = time.perf_counter()

    def left(self, step: int) -> str:
        """The remaining time after ``step``, as text."""
        if self.first is None:
            self.first = step - 1
        a_step = (time.perf_counter() - self.started) / (step - self.first)
        return f"{duration(a_step * (self.steps - step))} left"


class Display:
    """A `RunObserver` that shows progress: a line that is redrawn in a terminal, every tenth step in a log.

    A line of a log has as many numbers as fit; metrics.jsonl has all of every step.
    """

    def __init__(self, console: Console, steps: int, name: str):
        self.console, self.steps, self.clock = console, steps, Clock(steps)
        self.moving = console.is_interactive
        self.progress = bar(console, name)
        self.task = self.progress.add_task(name, total=steps, numbers="")

    def __enter__(self) -> "Display":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def on_start(self, step: int | None) -> None:
        self.clock = Clock(self.steps)
        self.progress.update(self.task, completed=step or 0)

    def on_step(self, step: int, row: dict[str, float], collected: Collected) -> None:
        numbers, left = step_numbers(row), self.clock.left(step)
        self.progress.update(self.task, completed=step, numbers=said(numbers))
        if not self.moving and (step % 10 == 0 or step in (1, self.steps)):
            self._line(f"step {step}/{self.steps}", [*numbers[:2], left, *numbers[2:]])

    def on_evaluation(self, step: int, row: dict[str, float]) -> None:
        # Against the base and in its spreads: another scale than that of a step's reward.
        named = {"reward_gain" if name == "reward" else name: value for name, value in row.items()}
        numbers = [f"{name} {value:.3f}" for name, value in named.items() if name != "step"]
        if self.moving:
            say(self.console, f"evaluation at step {step}: {said(numbers)}")
        else:
            self._line(f"evaluation at step {step}", numbers)

    def on_warning(self, step: int, message: str) -> None:
        say(self.console, f"warning: {message}", style="yellow")

    def _line(self, place: str, numbers: list[str]) -> None:
        self.console.print(Text(fitting([place, *numbers], self.console.width)), soft_wrap=True)
