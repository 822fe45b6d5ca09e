"""Slot metrics of a list of responses, one number a response."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

METRICS = (
    "slot_error_rate",
    "coverage",
    "perfect",
    "clean",
    "hallucination",
    "repetition",
    "length",
)


class Counts(Protocol):
    """Protocol of a checker's slot counts of one response (``tasks.Check``)."""

    @property
    def slots(self) -> int: ...
    @property
    def missing(self) -> int: ...
    @property
    def hallucinated(self) -> int: ...
    @property
    def repeated(self) -> int: ...


def slot_metrics(checks: Sequence[Counts], lengths: Sequence[int]) -> dict[str, np.ndarray]:
    """Every metric of METRICS as a float array, one entry a response.

    slot_error_rate  (missing + hallucinated + repeated) / slots, 0 or more, lower is better
    coverage         slots said / slots, in [0, 1], higher is better
    perfect          1 where every slot is said
    clean            1 where every slot is said and nothing is invented or repeated
    hallucination    hallucinated / slots, 0 or more, lower is better
    repetition       repeated / slots, 0 or more, lower is better
    length           as passed in: tokens or words of the response

    The slot error rate is therefore 1 - coverage + hallucination + repetition, response by response. A prompt
    without slots counts as one slot that is said. Raises ValueError unless there is one length a check.
    """
    if len(checks) != len(lengths):
        raise ValueError(f"{len(checks)} checks but {len(lengths)} lengths")
    counted = [(check.slots, check.missing, check.hallucinated, check.repeated) for check in checks]
    slots, missing, hallucinated, repeated = np.array(counted, dtype=float).reshape(-1, 4).T
    slots = np.maximum(slots, 1)
    return {
        "slot_error_rate": (missing + hallucinated + repeated) / slots,
        "coverage": 1 - missing / slots,
        "perfect": (missing == 0).astype(float),
        "clean": (missing + hallucinated + repeated == 0).astype(float),
        "hallucination": hallucinated / slots,
        "repetition": repeated / slots,
        "length": np.array(lengths, dtype=float),
    }
