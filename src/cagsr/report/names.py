"""Meanings of the metrics on the page, and the format of numbers."""

__all__ = ["MEANINGS", "number", "tick"]

MEANINGS = {
    "reward": "mean over the candidates of a step; standardised terms compare them, so 0 is usual",
    "evaluation/reward": "change from the base, in units of the base's own spread; not the reward of a step",
    "reward_spread": "deviation within a prompt's candidates; at 0 there is nothing to learn from",
    "replaced": "prompts of a step that gave way to others, whose candidates differ in reward",
    "flat": "prompts of a step whose candidates all have the same reward",
    "kl": "nats a token away from the reference",
    "length": "tokens a response",
    "repetition": "share of repeated trigrams",
    "entropy": "nats a token",
    "shuffled": "responses that score as high under another prompt; chance is .5",
    "finished": "share that ended by themselves",
    "empty": "share without a token",
    "learning_rate": "of AdamW",
    "seconds": "a step",
    "memory": "gigabytes at most so far, of the GPU or else of the process",
    "loss": "what the optimizer sees",
    "clipped": "share of tokens whose ratio was cut",
    "importance": "the policy's probability of a token over that of the engine that drew it",
    "importance_max": "of all tokens of a step",
    "importance_cut": "share of tokens whose ratio to the engine that drew them is above the limit",
    "mismatch": "nats a token between the engine that sampled and the policy",
}


def number(value: float, exact: bool = True) -> str:
    """Format a number: three or four digits, no zero before the point: .130, −.270, 1.25, 31.6, 1,447, 3e-4.

    Where numbers stand below one another, ``exact=False`` keeps three places: what is smaller is 0.
    """
    size = abs(value)
    if exact and size and (size < 0.001 or size >= 1e7):
        text = f"{size:.1e}".replace("e-0", "e-").replace("e+0", "e").replace(".0e", "e")
    elif size >= 100:
        text = f"{size:,.0f}"
    else:
        text = f"{size:.{3 if size < 1 else 2 if size < 10 else 1}f}"
        text = text.removeprefix("0") if size < 1 and float(text) < 1 else text
    return ("−" if value < 0 and text.strip(".0") else "") + (text if text.strip(".0") else "0")


def tick(value: float) -> str:
    """Format a round number at an axis: .2, 40, 12k."""
    text = f"{abs(value) / 1000:g}k" if abs(value) >= 10_000 else f"{abs(value):g}"
    return ("−" if value < 0 else "") + (text[1:] if text.startswith("0.") else text)
