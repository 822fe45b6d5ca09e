"""Whether the preset `robust` chooses rightly: what heads say of each base without labels, and what its checker says.

``python -m benchmarks.choices [--case NAME] [--prompts 50] [--seed 0]`` makes the bases of `benchmarks.table` that do
not ship, probes each as `attention` and as `knockout`, and prints a table: how well the heads follow the knockouts,
which of the two that chooses, and how often each ranks the better of two samples of a prompt higher (AUC by the
task's checker, 95 % interval over prompts). The choice is right where the chosen one ranks higher, wrong where the
other does, and open where their intervals overlap. What is finished is not done again.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.table import CASES, CONFIG, Case, commands
from cagsr.io.atomic_write import write_atomically
from cagsr.rewards.heads_found import ATTENTION, KNOCKOUT

TITLES = ("base", "follows", "pieces", "chosen", f"AUC, {ATTENTION}", f"AUC, {KNOCKOUT}", "right")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", action="append", dest="cases", choices=[case.name for case in CASES])
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, default=Path("runs/choices"))
    given = parser.parse_args()
    chosen = [case for case in CASES if given.cases is None or case.name in given.cases]
    print(f"| {' | '.join(TITLES)} |", f"|{' --- |' * len(TITLES)}", sep="\n", flush=True)
    for case in chosen:
        print(line(case.name, probed(case, given.directory, given.prompts, given.seed)), flush=True)


def probed(case: Case, directory: Path, prompts: int, seed: int) -> dict[str, dict[str, Any]]:
    """What `cagsr probe --json` says of the base of a case, by the preset that it was configured with."""
    place = directory / case.name
    place.mkdir(parents=True, exist_ok=True)
    for arguments in commands(case, directory, quick=False, extra=[]):
        if arguments[0] == "sft":
            _typed(arguments, place / "log.txt")
    found = {}
    for preset in (ATTENTION, KNOCKOUT):
        kept = place / f"{preset}-{prompts}-{seed}.json"
        if not kept.exists():
            settings = [f"data.task={case.task}", f"reward.preset={preset}", f"train.seed={seed}"]
            settings += [f"model.name={place / 'base' / 'model'}"] * bool(case.steps)
            probe = ["probe", "--config", CONFIG, "--json", "--prompts", str(prompts), *settings]
            write_atomically(kept, _typed(probe, place / "log.txt"))
        found[preset] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def _typed(arguments: list[str], log: Path) -> str:
    """What ``cagsr ARGUMENTS`` prints, on one thread."""
    with log.open("a", encoding="utf-8") as said:
        done = subprocess.run(
            [sys.executable, "-m", "cagsr", *arguments],
            check=True,
            stdout=subprocess.PIPE,
            stderr=said,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            text=True,
        )
    return done.stdout


def line(name: str, found: dict[str, dict[str, Any]]) -> str:
    """The row of a base: figures with their intervals, and whether what was chosen ranks higher than the other."""
    heads = found[ATTENTION]["heads"]
    aucs = {preset: probe["rewards"][preset]["quality"]["auc"] for preset, probe in found.items()}
    chosen, other = (ATTENTION, KNOCKOUT) if heads["preset"] == ATTENTION else (KNOCKOUT, ATTENTION)
    right = "open"
    if aucs[chosen]["low"] > aucs[other]["high"]:
        right = "yes"
    if aucs[other]["low"] > aucs[chosen]["high"]:
        right = "no"
    both = (aucs[preset] for preset in (ATTENTION, KNOCKOUT))
    figures = [f"{auc['mean']:.2f} ({auc['low']:.2f}-{auc['high']:.2f})" for auc in both]
    cells = [name, f"{heads['follows']:.2f}", str(heads["pieces"]), chosen, *figures, right]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
