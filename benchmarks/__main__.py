"""Measure what things cost, and write docs/performance.json and docs/performance.md.

make bench                                  all parts
make bench ARGS='--only capture trl'        some, merged into what the record has of the others
make bench ARGS=--quick                     that it works: small sizes, two rounds, into runs/benchmarks
"""

import argparse
import importlib
import time
from pathlib import Path

import torch

from benchmarks.record import Plan, keep
from cagsr.io.quiet_libraries import silence_libraries

PARTS = {
    "trl": "against_trl",
    "sharing": "sharing",
    "sampling": "sampling",
    "step": "step",
    "capture": "capture",
    "long": "long",
    "real": "real",
    "growth": "growth",
    "processes": "processes",
    "demo": "demo",
}
ROUNDS, QUICK_ROUNDS = 10, 2


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--quick", action="store_true", help="small sizes and two rounds")
    parser.add_argument("--rounds", type=int, help=f"turns of each way (default {ROUNDS})")
    parser.add_argument(
        "--into", type=Path, help="directory of the record (default docs; quick: runs/benchmarks)"
    )
    options = parser.parse_args()
    plan = Plan(options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS), options.quick)
    into = options.into or Path("runs/benchmarks" if options.quick else "docs")
    silence_libraries()
    torch.set_num_threads(1)
    for name in options.only:
        started = time.perf_counter()
        part = importlib.import_module(f"benchmarks.{PARTS[name]}").measure(plan)
        keep(into, name, part, plan, list(PARTS))
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    print(into / "performance.md")


if __name__ == "__main__":
    main()
