"""Inter-rater agreement: Krippendorff's alpha.

Source: Krippendorff, Content Analysis, 4th edition, 2019, chapter 12; computed by the package ``krippendorff``.
"""

from collections.abc import Mapping

import krippendorff
import numpy as np

__all__ = ["alpha"]


def alpha(ratings: Mapping[str, Mapping[int, int]]) -> tuple[float | None, int]:
    """Krippendorff's alpha for ordinal values, and the number of items that two raters or more have rated.

    ``ratings`` are rater -> item -> value. 1 is perfect agreement, 0 what chance gives, below 0 worse; None where
    it is not defined: no item with two ratings, or one and the same value everywhere.
    """
    items = sorted({item for given in ratings.values() for item in given})
    table = np.array([[given.get(item, np.nan) for item in items] for given in ratings.values()], dtype=float)
    shared = table[:, (~np.isnan(table)).sum(0) >= 2] if table.size else table
    values = np.unique(shared[~np.isnan(shared)])
    if len(values) < 2:
        return None, shared.shape[1] if shared.ndim == 2 else 0
    return float(krippendorff.alpha(shared, level_of_measurement="ordinal")), shared.shape[1]
