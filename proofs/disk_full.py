"""A disk that fills up costs nothing that was safe before, is said, and the run goes on once there is room.

Where file systems may be mounted, each run has a small one of its own: either so many free pages or so many free
files are left when training begins, for every number up to what a run needs, so that each page and each file of a
run is once the one that does not fit. Elsewhere a limit on the size of a file stands in for the disk.
"""

import resource
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random

import runs
from cagsr.io import manifest as seal
from cases import CASES, Workshop, differences, ending

TITLE = "a full disk never costs an earlier checkpoint"
PROMISE = 3
COUNT = 240

OF = ("GRPO, T5", "PPO, Llama, LoRA", "SFT, T5")
PAGE = 4096
MOST = {"pages": 190, "files": 60, "bytes": 150_000}
"""More than any of these runs writes: beyond, nothing fails."""


def prove(count: int, random: Random, advance: Callable[..., None]) -> list[str]:
    """The runs, out of ``count``, that lost something, said nothing, or did not go on to the same bits."""
    workshop, failures = Workshop.open(), []
    kinds = ("pages", "pages", "files") if may_mount() else ("bytes",)
    for item in range(count):
        name, kind = random.choice(OF), random.choice(kinds)
        left = random.randrange(MOST[kind])
        cwd = workshop.fresh(item)
        with small_disk(cwd / "disk") if kind != "bytes" else _folder(cwd / "disk"):
            full, problem = filled(workshop, name, cwd, kind, left)
        failures += [f"{name}, {left} {kind} left: {problem}"] if problem else []
        advance(full=int(full), **{kind: 1})
    return failures


def figures(sums: Counter[str]) -> str:
    kinds = ", ".join(f"{sums[kind]} by {kind}" for kind in MOST if sums[kind])
    return f"{sums['full']} ran into the limit ({kinds})"


def may_mount() -> bool:
    probe = Path.cwd() / "mount-probe"
    try:
        with small_disk(probe):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    place.mkdir()
    options = f"size={64 * 2**20},nr_inodes=1000"
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True, capture_output=True
    )
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextmanager
def _folder(place: Path) -> Iterator[None]:
    place.mkdir()
    yield


def filled(workshop: Workshop, name: str, cwd: Path, kind: str, left: int) -> tuple[bool, str]:
    """Whether the run ran into the limit, and what is wrong with how it took that."""
    case = CASES[name]
    key = "sft.directory" if case.command == "sft" else "run.directory"
    place = (f"{key}=disk/run",)
    run = runs.start(case.arguments(False, place), cwd, before=partial(fill, kind, left))
    code = run.wait(300)
    if code == 0:
        return False, differences(ending(cwd / "disk/run"), workshop.expected(name))
    if code != 4 or "Traceback" in run.err or "cannot be written" not in run.err:
        return True, f"ended with {code}: {run.err.strip()[-300:]}"
    for checkpoint in (cwd / "disk/run/checkpoints").glob("step-*"):
        problem = seal.damage(checkpoint)
        if problem:
            return True, f"{checkpoint.name} was harmed: {problem}"
    for filler in (cwd / "disk").glob("filler*"):
        filler.unlink()
    again = runs.start(case.arguments((cwd / "disk/run/run.json").exists(), place), cwd)
    code = again.wait(300)
    if code:
        return True, f"with room again it ended with {code}: {again.err.strip()[-300:]}"
    return True, differences(ending(cwd / "disk/run"), workshop.expected(name))


def fill(kind: str, left: int) -> None:
    """Plant it: when the place of the run has been checked, all but ``left`` pages or files of its disk are taken."""
    from cagsr.training import sft_run as sft
    from cagsr.training import trainer as train

    checked = train.check_paths

    def check_and_fill(config: object) -> None:
        checked(config)  # type: ignore[arg-type]
        take(kind, left)

    train.check_paths = sft.check_paths = check_and_fill  # type: ignore[assignment]


def take(kind: str, left: int) -> None:
    if kind == "bytes":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (left, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    elif kind == "files":
        for number in range(10_000):
            try:
                Path(f"disk/filler-{number}").touch()
            except OSError:
                break
        for number in range(left):
            Path(f"disk/filler-{number}").unlink(missing_ok=True)
    else:
        block = bytes(PAGE)
        with Path("disk/filler").open("wb", buffering=0) as file:
            while True:
                try:
                    if file.write(block) < PAGE:
                        break
                except OSError:
                    break
            file.truncate(max(0, file.tell() - left * PAGE))
