"""What the probe said of a reward before training, and what training by it then did."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cagsr.probing.verdict import LEVELS, Base, Level, Verdict, judge_base, overall

__all__ = ["Outcome", "matrix", "outcomes", "rows"]

# Systems that train by one preset and by nothing else, and the name that the probe has for it.
PRESETS = {
    "cagsr-grpo": "robust",
    "paper": "paper",
    "lexical": "lexical",
    "length": "length",
    "self-certainty": "self-certainty",
    "oracle": "oracle",
}
# A reward that mends omissions by inventing has not helped.
INVENTED = 0.02


@dataclass(frozen=True)
class Outcome:
    """One reward on one base. ``change`` of slot errors: mean, low, high; ``invented``: its rise."""

    case: str
    preset: str
    level: Level
    auc: float
    before: float
    after: float
    change: tuple[float, float, float]
    invented: float

    @property
    def helped(self) -> bool:
        """Fewer slot errors, and invention up by less than .02: the rule of the first fourteen cases (lab notes)."""
        return self.after < self.before and self.invented < INVENTED


def outcomes(case: str, probe: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Outcome]:
    """A case's presets that were trained, by the data that `cagsr probe --json` and `cagsr compare` left."""
    systems, differences = summary["systems"], summary["differences"]
    base = judge_base(Base(**{name: probe["base"][name] for name in Base.__dataclass_fields__}))
    found = []
    for system, preset in PRESETS.items():
        if system not in systems:
            continue
        judged, change = probe["rewards"][preset], differences[f"{system}-no-rl"]
        verdict = overall(base, Verdict(judged["verdict"], tuple(judged["reasons"])))
        errors = change["slot_error_rate"]
        found.append(
            Outcome(
                case,
                preset,
                verdict.level,
                judged["quality"]["auc"]["mean"],
                systems["no-rl"]["slot_error_rate"]["mean"],
                systems[system]["slot_error_rate"]["mean"],
                (errors["mean"], errors["low"], errors["high"]),
                change["hallucination"]["mean"],
            )
        )
    return found


def matrix(found: Iterable[tuple[str, bool]]) -> str:
    """Verdicts against whether training helped, counted, as a Markdown table."""
    counts = Counter(found)
    lines = ["| probe | training helped | it did not |", "| --- | --- | --- |"]
    lines += [f"| {level} | {counts[level, True]} | {counts[level, False]} |" for level in LEVELS]
    return "\n".join(lines) + "\n"


def rows(found: Sequence[Outcome]) -> str:
    """Every outcome, as a Markdown table."""
    lines = [
        "| case | preset | probe | AUC | slot errors | change | invented | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in found:
        change = f"{one.change[0]:+.3f} [{one.change[1]:+.3f}, {one.change[2]:+.3f}]"
        lines.append(
            f"| {one.case} | {one.preset} | {one.level} | {one.auc:.2f} | {one.before:.3f} -> {one.after:.3f} "
            f"| {change} | {one.invented:+.3f} | {'helped' if one.helped else 'did not'} |"
        )
    return "\n".join(lines) + "\n"
