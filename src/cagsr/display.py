"""What the terminal shows while a run goes: one line that moves, or plain lines where nothing can move."""

from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from cagsr.step import Collected

__all__ = ["Display", "step_line"]


def step_line(row: dict[str, float]) -> str:
    """The numbers of a step in the order in which they go wrong: reward and its signals, then the leash, then text."""
    signals = "  ".join(
        f"{name.removeprefix('signal/')} {value:.3g}"
        for name, value in row.items()
        if name.startswith("signal/")
    )
    return (
        f"reward {row['reward']:.3g}  {signals}  spread {row['reward_spread']:.2g}  kl {row['kl']:.3f}  "
        f"entropy {row['entropy']:.2f}  length {row['length']:.1f}  repetition {row['repetition']:.2f}  "
        f"{row['tokens_per_second']:.0f} tok/s"
    )


class _Moving(Progress):
    """The bar, and under it the numbers, which may take as many lines as the terminal's width asks for."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            yield Padding(Text(task.fields["numbers"], style="dim"), (0, 0, 0, 2))


class Display:
    """A trainer's observer. In a terminal the progress line is redrawn; in a log every tenth step is printed."""

    def __init__(self, console: Console, steps: int, name: str):
        self.console, self.steps = console, steps
        self.moving = console.is_interactive
        self.progress = _Moving(
            TextColumn(f"[bold]{name}[/]"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.task = self.progress.add_task(name, total=steps, numbers="")

    def __enter__(self) -> "Display":
        if self.moving:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def on_start(self, step: int | None) -> None:
        self.progress.update(self.task, completed=step or 0)

    def on_step(self, step: int, row: dict[str, float], collected: Collected) -> None:
        line = step_line(row)
        self.progress.update(self.task, completed=step, numbers=line)
        if not self.moving and (step % 10 == 0 or step in (1, self.steps)):
            self.console.print(f"step {step}/{self.steps}  {line}", highlight=False, soft_wrap=True)

    def on_evaluation(self, step: int, row: dict[str, float]) -> None:
        numbers = "  ".join(f"{name} {value:.3f}" for name, value in row.items() if name != "step")
        self.console.print(f"evaluation at step {step}: {numbers}", highlight=False, soft_wrap=True)

    def on_warning(self, step: int, message: str) -> None:
        self.console.print(
            f"warning: {message}", style="yellow", highlight=False, markup=False, soft_wrap=True
        )
