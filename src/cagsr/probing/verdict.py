"""Go, caution or no: what the base's samples and the adversaries say of a reward, and why.

Thresholds were set on development prompts of the built-in tasks and of E2E, T5 and Llama shapes; docs/lab-notes.md
says what training then did.
"""

__all__ = [
    "LEVELS",
    "Base",
    "Found",
    "Level",
    "Verdict",
    "advised",
    "hint",
    "judge_base",
    "judge_reward",
    "overall",
]

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cagsr.metrics.bootstrap import Interval
from cagsr.probing.ranking import Ranked

Level = Literal["go", "caution", "no"]
LEVELS: tuple[Level, ...] = ("go", "caution", "no")
"""From best to worst."""

# Within-prompt AUC from which on training has clearly repaired a base. Those between chance and it moved slowly.
GOOD_AUC = 0.70
# A few pairs tell less than a ranking of every sample; with fewer the interval alone is wider than what is asked.
GOOD_PAIRS, ENOUGH_PAIRS = 0.70, 30
# Best of K less mean, by the checker: with less, chance in what is sampled outweighs what a reward could choose.
LEAST_HEADROOM = 0.05
# Slots (or repetitions) a slot that the best of K has more than any: training on it multiplies what one choice does.
MUCH_INVENTED, SOME_INVENTED = 0.05, 0.02
# An adversary that wins as often as a coin would; ties count half, so a reward that is blind to it is here too.
FOOLED = 0.5
# Groups that a reward cannot tell apart teach nothing; where most are, a step is mostly wasted.
FLAT = 0.5
# A response at least as likely under another prompt: 0 for every base that could do its task, .5 for one that never
# reads its prompt.
UNREAD = 0.2
# Samples that repeat or never end in such numbers are those of a base that has not learnt its task.
BROKEN = 0.5

# Measured, but never advised: the checker itself, and signals that are still to be weighed.
NOT_ADVISED = ("oracle", "candidates")
# Two intervals of a hundred prompts overlap by about so much; the configured reward is kept within it.
CLEARLY_BETTER = 0.05
# A step away from what a base samples, so that training gets there, as the paper's sum did.
NEAR = {
    "first clause": "the first clause alone",
    "repeated": "one clause repeated without end",
    "other": "the response to another prompt",
    "shuffled": "its own response under another prompt",
    "empty": "an empty response",
}
# Far from anything that a base samples, or only a part of it: a warning.
TEMPTING = {
    "copied": "the prompt copied",
    "symbols": "punctuation alone",
    "inserted": "a clause of another response put in",
}


@dataclass(frozen=True)
class Base:
    """What the base's samples are like; shares in [0, 1]. ``headroom``: best of K by the checker less the mean."""

    headroom: float | None
    alike: float  # of prompts, whose candidates are all the same text
    empty: float  # of samples
    unfinished: float  # of samples
    repeated: float  # share of repeated trigrams
    unread: float  # of prompts, whose response is at least as likely under another prompt
    entropy: float  # nats a token


@dataclass(frozen=True)
class Found:
    """What is known of one reward. ``by`` has ``quality``, ``said``, ``invented``, ``repeated`` where there is a
    checker, ``rouge_l`` where there are references; every truth is higher where a response is better.
    """

    by: Mapping[str, Ranked] = field(default_factory=dict)
    pairs: Interval | None = None
    pair_count: int = 0
    adversaries: Mapping[str, float] = field(default_factory=dict)
    flat: float = 0.0  # of prompts, whose candidates all get the same reward


@dataclass(frozen=True)
class Verdict:
    level: Level
    reasons: tuple[str, ...]


def judge_base(base: Base) -> Verdict:
    """Whether any reward could help this base. ``go`` without reasons where nothing speaks against it."""
    against: list[tuple[Level, str]] = []
    if base.headroom is not None and base.headroom < LEAST_HEADROOM:
        against.append(("no", f"the best sample is hardly better than any: headroom {base.headroom:.3f}"))
    if base.unread > UNREAD:
        against.append(
            (
                "no",
                f"the base hardly reads its prompt: {base.unread:.0%} of its responses suit another one as well",
            )
        )
    if base.alike > FLAT:
        against.append(
            ("no", f"{base.alike:.0%} of the prompts get one response only: nothing to choose from")
        )
    for share, what in (
        (base.empty, "samples are empty"),
        (base.unfinished, "samples never end"),
        (base.repeated, "of what is sampled was said before"),
    ):
        if share > BROKEN:
            against.append(("no", f"{share:.0%} {what}: fine-tune on references first"))
    return _worst(against)


def judge_reward(found: Found) -> Verdict:
    """One reward by the best truth at hand: the checker, else labelled pairs, else references, else adversaries alone.

    Without a checker or enough pairs it is at most ``caution``, except where references agree with the reward as
    clearly as a checker would have to: adversaries tell that a reward is not fooled, not that it is right. On
    questions and answers they are lost on a reward that does harm.
    """
    said = _by_truth(found) + _by_adversaries(found)
    if found.flat > FLAT:
        said.append(("no", f"it cannot tell the candidates of {found.flat:.0%} of the prompts apart"))
    return _worst(said)


def _worst(said: list[tuple[Level, str]]) -> Verdict:
    level = LEVELS[max((LEVELS.index(level) for level, _ in said), default=0)]
    return Verdict(level, tuple(reason for given, reason in said if given == level))


def _by_truth(found: Found) -> list[tuple[Level, str]]:
    if "quality" in found.by:
        return _by_checker(found.by)
    if found.pairs is not None:
        return _by_pairs(found.pairs, found.pair_count)
    if "rouge_l" in found.by:
        return _by_references(found.by["rouge_l"])
    return [
        ("caution", "nothing here tells a good response from a bad one: no checker, no references, no pairs")
    ]


def _by_checker(by: Mapping[str, Ranked]) -> list[tuple[Level, str]]:
    quality = by["quality"]
    said: list[tuple[Level, str]] = []
    if quality.auc is None or quality.auc.low <= 0.5:
        said.append(("no", f"it ranks the samples no better than chance: AUC {_shown(quality.auc)}"))
    elif quality.auc.mean < GOOD_AUC:
        said.append(
            ("caution", f"it ranks the samples weakly: AUC {_shown(quality.auc)}, less than {GOOD_AUC:.2f}")
        )
    else:
        said.append(("go", f"it ranks the samples well: AUC {_shown(quality.auc)}"))
    gain = f"best of K {_shown(quality.gain, '+')}"
    beyond = f"length and log-probability: correlation {_shown(quality.partial, '+')}"
    said.append(
        ("no", f"choosing by it gains nothing: {gain}")
        if quality.gain.low <= 0
        else ("go", f"choosing by it gains: {gain}")
    )
    said.append(
        ("no", f"it knows nothing beyond {beyond}")
        if quality.partial.low <= 0
        else ("go", f"it knows more than {beyond}")
    )
    for name, verb in (("invented", "invents"), ("repeated", "repeats")):
        more = -by[name].gain.mean
        if more >= SOME_INVENTED and by[name].gain.high < 0:
            level: Level = "no" if more >= MUCH_INVENTED else "caution"
            said.append((level, f"what it chooses {verb} more: {more:+.3f} a slot"))
    return said


def _by_pairs(pairs: Interval, count: int) -> list[tuple[Level, str]]:
    if count < ENOUGH_PAIRS:
        return [("caution", f"{count} labelled pairs are too few to say more; {ENOUGH_PAIRS} would do")]
    told = f"with {count} labelled pairs: {_shown(pairs)}"
    if pairs.low <= 0.5:
        return [("no", f"it agrees no better than chance {told}")]
    return [("go" if pairs.mean >= GOOD_PAIRS else "caution", f"it agrees {told}")]


def _by_references(rouge: Ranked) -> list[tuple[Level, str]]:
    # References leave things out themselves, so that disagreement with them tells little.
    if rouge.auc is None or rouge.auc.mean < GOOD_AUC or rouge.partial.low <= 0:
        return [
            (
                "caution",
                f"references do not settle it: AUC by ROUGE-L {_shown(rouge.auc)}; label {ENOUGH_PAIRS} pairs",
            )
        ]
    return [("go", f"it ranks the samples as the references do: AUC by ROUGE-L {_shown(rouge.auc)}")]


def _by_adversaries(found: Found) -> list[tuple[Level, str]]:
    said: list[tuple[Level, str]] = []
    highest = max((share for share in found.adversaries.values() if not math.isnan(share)), default=0.0)
    if highest < FOOLED:
        said.append(("go", f"no adversary fools it: the best one wins {highest:.0%} of the time"))
    dangers: tuple[tuple[Level, dict[str, str]], ...] = (("no", NEAR), ("caution", TEMPTING))
    for level, names in dangers:
        for name, what in names.items():
            share = found.adversaries.get(name, math.nan)
            if share >= FOOLED:
                said.append((level, f"{what} beats the base's own response {share:.0%} of the time"))
    return said


def _shown(value: Interval | None, sign: str = "") -> str:
    if value is None:
        return "unknown"
    return f"{value.mean:{sign}.2f} [{value.low:{sign}.2f}, {value.high:{sign}.2f}]"


def _merit(one: Found) -> float:
    """How well it ranks, by the truth that its verdict rests on; 0 where there is none."""
    truth = "quality" if "quality" in one.by else "rouge_l"
    if truth == "rouge_l" and one.pairs is not None:
        return one.pairs.mean
    auc = one.by[truth].auc if truth in one.by else None
    return 0.0 if auc is None else auc.mean


def hint(found: Mapping[str, Found], chosen: str) -> str | None:
    """Where some signal alone ranks well, and clearly better than the reward that is advised."""
    # Length ranks well wherever a base leaves things out, and has never trained well.
    able = [name for name in found if name not in (*NOT_ADVISED, "length")]
    best = max(able, key=lambda name: _merit(found[name]))
    alone, ours = _merit(found[best]), _merit(found[chosen])
    if alone < GOOD_AUC or alone <= ours + CLEARLY_BETTER:
        return None
    return f"{best} alone ranks at {alone:.2f}, {chosen} at {ours:.2f}: try cagsr calibrate"


def advised(verdicts: Mapping[str, Verdict], found: Mapping[str, Found], configured: str) -> str:
    """The configured reward, unless another has a better verdict, or the same and clearly ranks better.

    ``configured`` may be the one that learnt heads name in its place (`probing.heads.favoured`). Where all are refused
    it is that one: there is nothing to advise.
    """
    able = [name for name in verdicts if name == configured or name not in NOT_ADVISED]
    best = min(LEVELS.index(verdicts[name].level) for name in able)
    if LEVELS[best] == "no":
        return configured
    equal = [name for name in able if LEVELS.index(verdicts[name].level) == best]
    first = max(equal, key=lambda name: _merit(found[name]))
    if configured in equal and _merit(found[configured]) > _merit(found[first]) - CLEARLY_BETTER:
        return configured
    return first


def overall(base: Verdict, reward: Verdict) -> Verdict:
    """The worse of the two, with the reasons of both where they agree."""
    worst = LEVELS[max(LEVELS.index(base.level), LEVELS.index(reward.level))]
    return Verdict(
        worst, tuple(reason for one in (base, reward) if one.level == worst for reason in one.reasons)
    )
