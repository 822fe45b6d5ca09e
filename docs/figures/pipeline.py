"""The picture of one training step: prompt, candidates, observer, signals, reward, update."""

from collections.abc import Sequence

from svg import FAINT, INK, MARK, TEXT, svg, words

__all__ = ["pipeline"]

WIDE, TALL, GAP = 164, 104, 66
PROMPT = ("Describe the hotel.", "area: riverside", "pool: no")
CANDIDATES = ("A riverside hotel.", "No pool, by the river.", "A lovely hotel!", "…")
OBSERVER = ("a copy of the model from", "before training; it looks")
SIGNALS = ("coverage, knockout", "surprise, repetition", "… one number each")
REWARD = ("weighted sum, then", "compared within", "the group of K")
UPDATE = (
    "candidates above their",
    "group become likelier;",
    "the KL penalty keeps the",
    "policy near the observer",
)
REWARDS = (0.6, 0.95, 0.1)


def pipeline() -> str:
    """Four boxes from left to right, two below, and the way back to the first."""
    prompt, candidates, observer, signals = (8 + n * (WIDE + GAP) for n in range(4))
    top, low = 8, 166
    half, upper, lower = WIDE / 2, top + TALL / 2, low + TALL / 2
    body = [
        *_box(prompt, top, "prompt", PROMPT),
        *_box(candidates, top, "K candidates", CANDIDATES),
        *_box(observer, top, "frozen observer", OBSERVER),
        *_box(signals, top, "signals", SIGNALS),
        *_box(signals, low, "reward", REWARD),
        *_box(observer, low, "update", UPDATE),
        *_arrow((prompt + WIDE, upper), (candidates, upper), "policy", "samples"),
        *_arrow((candidates + WIDE, upper), (observer, upper)),
        *_arrow((observer + WIDE, upper), (signals, upper), "attention"),
        *_arrow((signals + half, top + TALL), (signals + half, low)),
        *_arrow((signals, lower), (observer + WIDE, lower), "advantage"),
        *_arrow((observer + half, top + TALL), (observer + half, low)),
        words(observer + half + 8, (top + TALL + low) / 2 + 4, "log-probabilities: KL penalty", FAINT, 10),
        *_arrow((observer, lower), (prompt + half, lower), "next step, with the updated policy"),
        *_arrow((prompt + half, lower), (prompt + half, top + TALL)),
        *_attention(observer + 24, top + 62),
        *_bars(signals + 18, low + 80),
    ]
    return svg(signals + WIDE + 10, low + TALL + 14, body, "one training step: from a prompt to an update")


def _box(x: float, y: float, title: str, lines: Sequence[str]) -> list[str]:
    frame = (
        f'x="{x}" y="{y}" width="{WIDE}" height="{TALL}" rx="6" fill="none" stroke="{INK}" stroke-width="1.5"'
    )
    text = [words(x + 10, y + 38 + 15 * n, line, TEXT, 11) for n, line in enumerate(lines)]
    return [f"<rect {frame}/>", words(x + 10, y + 19, title, INK, 13), *text]


def _arrow(
    start: tuple[float, float], end: tuple[float, float], above: str = "", below: str = ""
) -> list[str]:
    """A line with a head at its end, and what passes along it written beside its middle."""
    (x1, y1), (x2, y2) = start, end
    length = ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5
    along, across = ((x2 - x1) / length * 8, (y2 - y1) / length * 8), 0.45
    left = (x2 - along[0] - along[1] * across, y2 - along[1] + along[0] * across)
    right = (x2 - along[0] + along[1] * across, y2 - along[1] - along[0] * across)
    head = " ".join(f"{x:.1f},{y:.1f}" for x, y in ((x2, y2), left, right))
    line = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{FAINT}" stroke-width="1.5"'
    middle, height = (x1 + x2) / 2, (y1 + y2) / 2
    texts = [words(middle, height - 6, above, FAINT, 10, "middle")] * bool(above)
    texts += [words(middle, height + 14, below, FAINT, 10, "middle")] * bool(below)
    return [f"<line {line}/>", f'<polygon points="{head}" fill="{FAINT}"/>', *texts]


def _attention(x: float, y: float) -> list[str]:
    """A small heat map: rows of an answer, columns of a prompt."""
    shades = ((0.1, 0.9, 0.1, 0.3, 0.1), (0.6, 0.1, 0.2, 0.1, 0.1), (0.1, 0.1, 0.8, 0.1, 0.2))
    return [
        f'<rect x="{x + 20 * column}" y="{y + 12 * row}" width="19" height="11" fill="{INK}" fill-opacity="{shade}"/>'
        for row, line in enumerate(shades)
        for column, shade in enumerate(line)
    ]


def _bars(x: float, y: float) -> list[str]:
    """A bar for each candidate's reward; the one above its group is marked."""
    return [
        f'<rect x="{x + 40 * n}" y="{y + 14 - 14 * reward:.1f}" width="30" height="{14 * reward:.1f}" '
        f'fill="{MARK if reward == max(REWARDS) else INK}"/>'
        for n, reward in enumerate(REWARDS)
    ]
