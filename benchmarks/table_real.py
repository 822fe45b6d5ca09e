"""The table on a real assistant: docs/real.json, row by row, and the pages that quote it.

    make table-real                                  every system, task and seed that is not in docs/real.json yet
    make table-real ARGS="--task requests --system lexical --seed 0"
    make table-real ARGS="--task e2e --e2e FILE"     E2E's meanings, from a file with the columns mr and reference
    make table-real ARGS="--system attention-values --variant better --variant examples"
    make table-real ARGS="--measure --text FILE"     perplexity of a text that no run is about, before and after
    make table-real ARGS="--measure"                 nothing is trained; what there is, is measured again
    make table-real ARGS="--measure --system lexical --rate DIR"    and pairs of answers for `cagsr rate DIR`

SmolLM2-135M-Instruct (`cagsr demo --model instruct` fetches it) is trained by each reward with the settings of
examples/instruct.yaml, and compared with itself untrained on held-out prompts, greedily: as it stands, asked better,
with two worked examples, and by the best of eight samples. A run takes some twenty minutes on a core, so that the table
grows over days: a run that was stopped is resumed, one that is trained is not trained again, and what one found is a
row of its own, with intervals over prompts and its date. Answers are kept beside the runs, and metrics are computed
from them.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from rich.console import Console

from benchmarks import results
from benchmarks.pages import fill_all
from benchmarks.table_real_prompts import E2E, VARIANTS, WORDINGS, messages, prepare_e2e
from benchmarks.table_real_rows import (
    BASE,
    BEST_BY_CHECKER,
    BEST_OF,
    KEY,
    SYSTEMS,
    TASKS,
    Table,
    add,
    rows_in,
)
from benchmarks.table_real_text import pieces_of
from cagsr.errors import CagsrError, InputError
from cagsr.experiments.instruct_model import instruct_model
from cagsr.io.atomic_write import write_atomically

RECORD = Path("docs/real.json")
RATED = 100
"""Prompts whose answers people are given to judge."""


def cells(
    systems: Sequence[str] | None, seeds: Sequence[int], variants: Sequence[str] | None
) -> Iterator[tuple[int, str, str]]:
    """Seed, system and variant of every row that is asked for, what needs no training first.

    Where no variant is named, the base is asked in each wording, and every other system in the plain one.
    """
    named = systems or [BASE, BEST_OF, *SYSTEMS]
    if BASE in named:
        yield from ((0, BASE, variant) for variant in variants or WORDINGS)
    for seed, system in product(seeds, [name for name in named if name != BASE]):
        yield from ((seed, system, variant) for variant in variants or WORDINGS[:1])


def fill(table: Table, path: Path, asked: Iterator[tuple[int, str, str]]) -> None:
    """Train and measure what the record lacks."""
    for seed, system, variant in asked:
        key = [system, "" if system == BASE else str(seed), variant]
        if any(one[:KEY] == key for one in rows_in(results.read(path), table.task)):
            continue
        if not table.is_trained(system, seed):
            table.train(system, seed)
        keep(table, path, seed, system, variant)


def measure(table: Table, path: Path, asked: Iterator[tuple[int, str, str]], demanded: bool) -> None:
    """Measure again what is answered, and what is trained and was not asked yet: plainly, or as is ``demanded``."""
    for seed, system, variant in asked:
        asks = system != BEST_OF and table.is_trained(system, seed) and (demanded or variant == WORDINGS[0])
        if asks or table.kept_at(system, seed, variant).exists():
            keep(table, path, seed, system, variant)


def keep(table: Table, path: Path, seed: int, system: str, variant: str) -> None:
    """Put the row of a system in the record, and that of the base, which it is compared with."""
    rows = [] if system == BASE else [table.row(BASE, 0, WORDINGS[0])]
    rows.append(table.row(system, seed, variant))
    if system == BEST_OF:
        rows.append(table.row(BEST_BY_CHECKER, seed, variant))
    write_atomically(path, results.as_text(add(results.read(path), table.task, rows)))


def for_raters(table: Table, directory: Path, systems: Sequence[tuple[str, int]]) -> None:
    """Write answers to the first RATED prompts as `cagsr rate` reads them: of the base, and of systems with seeds."""
    asked = [messages(table.task, row, WORDINGS[0])[-1]["content"] for row in table.rows[:RATED]]
    for system, seed in [(BASE, 0), *systems]:
        answers = table.answers(system, seed, WORDINGS[0])["responses"]
        rows = [
            {"prompt": prompt, "response": texts[0]} for prompt, texts in zip(asked, answers, strict=False)
        ]
        path = directory / system / f"seed-{seed}" / "responses.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=list(TASKS), help="only this; again for more", action="append")
    systems = [BASE, BEST_OF, *SYSTEMS]
    parser.add_argument("--system", choices=systems, help="only this; again for more", action="append")
    parser.add_argument(
        "--seed", type=int, help="only this; again for more; default 0 and 1", action="append"
    )
    asked = "asked so; again for more; default: plain, and the base in every wording"
    parser.add_argument("--variant", choices=VARIANTS, help=asked, action="append")
    parser.add_argument("--e2e", type=Path, metavar="FILE", help="rows of E2E with mr and reference")
    elsewhere = "rows with a column text, or a .txt file, of which perplexity is measured"
    parser.add_argument("--text", type=Path, metavar="FILE", help=elsewhere)
    again = "train nothing; measure again what is trained"
    parser.add_argument("--measure", action="store_true", help=again)
    rate = "write answers of the base and of what is trained there, for people to judge"
    parser.add_argument("--rate", type=Path, metavar="DIR", help=rate)
    parser.add_argument("--directory", type=Path, default=Path("runs/real"))
    parser.add_argument("--record", type=Path, default=RECORD, help=f"default {RECORD}")
    return parser.parse_args()


def run(chosen: argparse.Namespace) -> None:
    """Fill the record for what is chosen. Raises InputError for E2E without its file, and a layout of other tasks."""
    tasks = chosen.task or [name for name in TASKS if name != E2E or chosen.e2e]
    console = Console()
    model = instruct_model(console)
    pieces = None if chosen.text is None else pieces_of(chosen.text)
    for task in tasks:
        if task != E2E and set(chosen.variant or ()) - set(WORDINGS):
            raise InputError(f"--variant: the task {task} is asked as {', '.join(WORDINGS)} only")
        table = Table(task, chosen.directory, model, pieces, console)
        if task == E2E and not table.prepared.exists():  # runs stand on it: it is written once
            if chosen.e2e is None:
                raise InputError("--task e2e needs E2E's rows: --e2e FILE, with the columns mr and reference")
            prepare_e2e(chosen.e2e, table.prepared)
        variants = chosen.variant or (VARIANTS if chosen.measure else None)
        asked = cells(chosen.system, chosen.seed or (0, 1), variants)
        if chosen.measure:
            measure(table, chosen.record, asked, demanded=bool(chosen.variant))
        else:
            fill(table, chosen.record, asked)
        if chosen.rate is not None:
            named = product(chosen.system or SYSTEMS, chosen.seed or (0, 1))
            trained = [each for each in named if each[0] in SYSTEMS and table.is_trained(*each)]
            for_raters(table, chosen.rate / task if len(tasks) > 1 else chosen.rate, trained)


def main() -> None:
    chosen = arguments()
    try:
        run(chosen)
    except CagsrError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    if chosen.record == RECORD:
        for page in fill_all(write=True):
            print(page)


if __name__ == "__main__":
    main()
