"""What a terminal shows of a probe: the base, how every reward ranks, who fools it, and the verdict."""

__all__ = ["show"]

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cagsr.data.adversaries import ADVERSARIES
from cagsr.io.terminal import duration, say
from cagsr.probing.samples import SHUFFLED
from cagsr.probing.verdict import FOOLED
from cagsr.rewards.heads_found import FOLLOWS

MOST_BLOCKS, LAYERS_A_BLOCK = 4, 8
NAME, NAME_WIDEST = len("self-certainty"), 22
STYLES = {"go": "green", "caution": "yellow", "no": "red"}
PRIMARY = {"quality": "the checker's quality", "rouge_l": "ROUGE-L to the nearest reference"}
# The checker's own parts, and what else ranks, each with its column's title.
PARTS = {"said": "said", "invented": "not\ninv.", "repeated": "not\nrep."}


def show(summary: Mapping[str, Any], console: Console) -> None:
    """Tables of at most 80 columns, then the verdict in one line, its reasons, and the YAML lines to use."""
    say(console, f"\n{summary['task']}, {summary['split']}, {_size(summary)}", style="bold")
    say(console, summary["model"], style="dim")
    for line in _base_lines(summary):
        say(console, line, indent="  ")
    primary = next((truth for truth in PRIMARY if truth in next(iter(summary["rewards"].values()))), None)
    has_pairs = "pairs" not in summary["missing"]
    console.print()
    if primary is None and not has_pairs:
        say(console, "Nothing at hand tells good responses from bad ones: adversaries only.")
    else:
        console.print(_ranking("rewards", summary["rewards"], primary))
        console.print()
        by_rank = sorted(summary["signals"].items(), key=lambda item: -_merit(item[1], primary))
        console.print(_ranking("signals", dict(by_rank), primary))
    if primary is not None:
        _note(
            console,
            f"AUC: how often the better of two samples of a prompt, by {PRIMARY[primary]}, scores higher; .5 is "
            "chance. best: what the best of K by it gains. beyond: rank correlation with length and log-probability "
            "taken out. said, not inv., not rep.: AUC by these parts of the checker alone.",
        )
    console.print()
    console.print(_adversaries(summary["rewards"]))
    _note(
        console,
        "How often it scores higher than the base's own sample, ties half; from .5 on it fools the reward.",
    )
    if summary["heads"] is not None:
        _layers(summary["heads"], console)
    _verdict(summary, console)


def _note(console: Console, text: str) -> None:
    say(console, text, style="dim", indent="  ")


def _size(summary: Mapping[str, Any]) -> str:
    return f"{summary['prompts']} prompts x {summary['candidates']} samples"


def _base_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    base = summary["base"]
    if base["headroom"] is not None:
        best = base["sampled_quality"] + base["headroom"]
        yield (
            f"quality: greedy {base['greedy_quality']:.3f}, sampled {base['sampled_quality']:.3f}, best sample "
            f"{best:.3f}: headroom {base['headroom']:.3f}"
        )
    yield (
        f"samples: empty {base['empty']:.1%}, unfinished {base['unfinished']:.1%}, repeated "
        f"{base['repeated']:.1%}, one text a prompt {base['alike']:.0%}"
    )
    yield f"entropy {base['entropy']:.2f} nats a token; as likely under another prompt: {base['unread']:.0%}"
    for what, why in summary["missing"].items():
        yield f"no {what}: {why}"
    chosen = summary["configured"] != summary["measured"]
    if summary["heads"] is None and chosen:
        yield f"heads: nothing told them apart, so that {summary['configured']} is {summary['measured']} here"
    elif summary["heads"] is None:
        yield "heads: none learnt; with reward.preset=robust a probe says whether attention serves"


def _layers(heads: Mapping[str, Any], console: Console) -> None:
    """The layers in up to four columns of rows, and what follows from the heads."""
    layers, follows = heads["layers"], heads["follows"]
    blocks = min(MOST_BLOCKS, -(-len(layers) // LAYERS_A_BLOCK))
    rows = -(-len(layers) // blocks)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 0, 0, 1))
    for column in ("layer", "agree", "read") * blocks:
        table.add_column(column, justify="right", no_wrap=True)
    for row in range(rows):
        cells = [
            (str(one["layer"]), _signed(one["agreement"]), str(one["read"])) for one in layers[row::rows]
        ]
        table.add_row(*(cell for one in cells for cell in one))
    console.print()
    console.print(table)
    read, count = (sum(one[key] for one in layers) for key in ("read", "heads"))
    known = (
        "" if follows is None else f" {_signed(follows)} ({'at least' if follows >= FOLLOWS else 'below'} "
    )
    known += "" if follows is None else f"{_share(FOLLOWS)})"
    _note(
        console,
        f"agree: mean rank correlation of a layer's heads with the knockouts, within a piece ({heads['pieces']} "
        f"pieces); read: how many of its heads are. {read} of {count} heads are read.",
    )
    say(console, f"heads follow the knockouts{known}: {heads['decision']}", indent="  ")


def _ranking(title: str, rows: Mapping[str, Mapping[str, Any]], primary: str | None) -> Table:
    first = next(iter(rows.values()))
    parts = {truth: name for truth, name in PARTS.items() if truth in first}
    parts |= {"rouge_l": "ROUGE"} if "rouge_l" in first and primary != "rouge_l" else {}
    ranking = ("AUC", "95 %", *parts.values(), "best", "beyond") if primary else ()
    has_pairs, judged = any("pairs" in found for found in rows.values()), "verdict" in first
    table = _table(title, *ranking, *(["pairs"] if has_pairs else []))
    if judged:
        table.add_column("", justify="left")
    for name, found in rows.items():
        cells: list[str | Text] = []
        if primary:
            ranked, auc = found[primary], found[primary]["auc"]
            cells += (
                ["", ""]
                if auc is None
                else [_share(auc["mean"]), "one prompt"]
                if auc["low"] is None
                else [_share(auc["mean"]), f"{_share(auc['low'])}–{_share(auc['high'])}"]
            )
            cells += [_share(_auc(found, truth, None)) for truth in parts]
            cells += [_signed(ranked["gain"]["mean"]), _signed(ranked["partial"]["mean"])]
        cells += [_share(found["pairs"]["mean"] if "pairs" in found else None)] if has_pairs else []
        cells += [Text(f" {found['verdict']}", STYLES[found["verdict"]])] if judged else []
        table.add_row(name, *cells)
    return table


def _adversaries(rewards: Mapping[str, Mapping[str, Any]]) -> Table:
    names = (*ADVERSARIES, SHUFFLED)
    table = _table("fooled by", *(name.replace(" ", "\n") for name in names))
    for name, found in rewards.items():
        shares = [found["adversaries"][adversary] for adversary in names]
        cells = [
            Text(_share(share), "bold red" if share is not None and share >= FOOLED else "")
            for share in shares
        ]
        table.add_row(name, *cells)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column(title, overflow="fold", min_width=NAME, max_width=NAME_WIDEST)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _verdict(summary: Mapping[str, Any], console: Console) -> None:
    level, name = summary["verdict"], summary["preset"]
    console.print()
    console.print(Text(f"{level.upper()}: {name}", f"bold {STYLES[level]}"))
    reasons, configured = list(summary["reasons"]), summary["configured"]
    if name != configured:
        own = summary["rewards"][configured]
        reasons.append(f"{configured}, as configured: {own['verdict']}; {own['reasons'][0]}")
    decided, chosen = (summary["heads"] or {}).get("preset"), configured != summary["measured"]
    if chosen:
        reasons.append(f"{configured} is {summary['measured']} for this base")
    if decided not in (None, name) and not (chosen and name == configured):
        reasons.append(f"its heads alone, without labels, name {decided}")
    reasons += [summary["hint"]] if summary["hint"] else []
    for reason in reasons:
        say(console, f"- {reason}", indent="  ")
    if summary["yaml"] is not None:
        console.print()
        console.print(summary["yaml"], end="", highlight=False, markup=False)
        cost = summary["cost"]
        say(
            console,
            f"# {cost['steps']} steps: {cost['responses']:,} responses, {cost['tokens']:,} tokens, about "
            f"{duration(cost['seconds'])} on this machine",
        )


def _auc(found: Mapping[str, Any], truth: str, otherwise: Any = 0.0) -> Any:
    auc = found[truth]["auc"]
    return otherwise if auc is None else auc["mean"]


def _merit(found: Mapping[str, Any], primary: str | None) -> float:
    return found["pairs"]["mean"] if primary is None else _auc(found, primary)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}".removeprefix("0")


def _signed(value: float) -> str:
    return f"{value:+z.2f}".replace("0.", ".", 1)
