"""What a model forgot: how well it still tells a text that no run is about, in nats a token, piece by piece."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import torch

from cagsr.config import Config
from cagsr.data.make_prompt import text_ids
from cagsr.data.readers import read
from cagsr.errors import InputError
from cagsr.io.atomic_write import write_atomically
from cagsr.metrics.bootstrap import difference
from cagsr.models.build import build_policy
from cagsr.runs.directory import fingerprint
from cagsr.types import Prompt

__all__ = ["change", "kept_nats", "nats", "pieces_of", "same_pieces"]

PIECES, TOKENS = 60, 256
"""So many pieces of the text are read, each up to so many tokens."""
AT_ONCE = 4


def pieces_of(source: Path) -> list[str]:
    """PIECES pieces of a text, drawn once for all: rows with a column ``text``, or paragraphs of a .txt file.

    Raises InputError for a file with none.
    """
    if source.suffix == ".txt":
        found = source.read_text(encoding="utf-8").split("\n\n")
    else:
        found = [row.values.get("text") for row in read(str(source))]
    texts = sorted({text.strip() for text in found if isinstance(text, str) and len(text.split()) > 1})
    if len(texts) < 2:
        raise InputError(
            f"--text: {source} has {len(texts)} pieces; give rows with a column text, or a .txt file"
        )
    return Random("elsewhere").sample(texts, min(PIECES, len(texts)))


def kept_nats(path: Path) -> np.ndarray | None:
    """[pieces] as `nats` kept them; None where it did not."""
    return np.array(json.loads(path.read_text(encoding="utf-8"))["nats"]) if path.exists() else None


def same_pieces(path: Path, other: Path) -> bool:
    """Whether two files of `nats` are about the same pieces of text, so that they can be compared."""
    first, second = (json.loads(each.read_text(encoding="utf-8"))["pieces"] for each in (path, other))
    return first == second


@torch.no_grad()
def nats(path: Path, config: Config, model: str, pieces: Sequence[str]) -> np.ndarray:
    """[pieces] the mean of -log p of a piece's tokens but the first, at temperature 1: kept in ``path``, or new.

    The text stands alone, in no chat template.
    """
    identity = fingerprint([str(TOKENS), *pieces])
    if path.exists() and json.loads(path.read_text(encoding="utf-8"))["pieces"] == identity:
        return np.array(json.loads(path.read_text(encoding="utf-8"))["nats"])
    torch.set_num_threads(1)  # the order of a sum is part of its result
    plain = {"model.name": model, "model.lora": None, "sampling.temperature": 1.0}
    policy = build_policy(config.replaced(plain)).requires_grad_(False)
    found: list[float] = []
    for start in range(0, len(pieces), AT_ONCE):
        rows = [
            text_ids(text, policy.tokenizer, goes_on=True)[:TOKENS]
            for text in pieces[start : start + AT_ONCE]
        ]
        first = [Prompt("", (ids[0],), ((0, 0),), (), number) for number, ids in enumerate(rows)]
        rollout = policy.given_ids(first, [ids[1:] for ids in rows], [""] * len(rows))
        logprobs = policy.logprobs(rollout).double()
        found += (-logprobs.sum(-1) / rollout.response_mask.sum(-1)).tolist()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"pieces": identity, "nats": found}) + "\n")
    return np.array(found)


def change(after: np.ndarray, before: np.ndarray) -> tuple[float, float, float]:
    """By what part perplexity changed, paired over pieces, with its 95 % interval: .02 is 2 % more, forgotten.

    Every piece weighs the same, so that perplexity is the exponential of the mean over pieces.
    """
    moved = difference(after, before)
    mean, low, high = np.expm1([moved.mean, moved.low, moved.high]).tolist()
    return mean, low, high
