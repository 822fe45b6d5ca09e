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
    """Every metric of METRICS as a float array, one entry a response; and wrong_values where every check tells them.

    slot_error_rate  (missing + hallucinated + repeated) / slots, 0 or more, lower is better
    coverage         slots said / slots, in [0, 1], higher is better
    perfect          1 where every slot is said
    clean            1 where every slot is said and nothing is invented or repeated
    hallucination    hallucinated / slots, 0 or more, lower is better
    repetition       repeated / slots, 0 or more, lower is better
    length           as passed in: tokens or words of the response
    wrong_values     contradicted / slots, the part of hallucination that gives a field of the prompt another value
                     instead of its own ("family-friendly" for "familyFriendly: no"), 0 or more, lower is better; a
                     value said beside the right one is not among them

    The slot error rate is therefore 1 - coverage + hallucination + repetition, response by response. A prompt
    without slots counts as one slot that is said. Raises ValueError unless there is one length a check.
    """
    if len(checks) != len(lengths):
        raise ValueError(f"{len(checks)} checks but {len(lengths)} lengths")
    counted = [(check.slots, check.missing, check.hallucinated, check.repeated) for check in checks]
    slots, missing, hallucinated, repeated = np.array(counted, dtype=float).reshape(-1, 4).T
    slots = np.maximum(slots, 1)
    # A checker of the user's own may not know them.
    contradicted = [getattr(check, "contradicted", None) for check in checks]
    told = {} if None in contradicted else {"wrong_values": np.array(contradicted, dtype=float) / slots}
    return {
        "slot_error_rate": (missing + hallucinated + repeated) / slots,
        "coverage": 1 - missing / slots,
        "perfect": (missing == 0).astype(float),
        "clean": (missing + hallucinated + repeated == 0).astype(float),
        "hallucination": hallucinated / slots,
        "repetition": repeated / slots,
        "length": np.array(lengths, dtype=float),
    } | told
