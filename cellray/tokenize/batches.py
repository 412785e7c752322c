"""Which cells share a batch: neighbours in length, as many as a token budget holds.

Contract: every cell is in exactly one batch, and a padded batch never holds more than ``budget`` tokens unless a
single cell does. It knows lengths only, neither tokens nor models.
"""

from collections.abc import Iterator

import numpy as np


def token_batches(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Yield index arrays of cells, longest first, so that the largest allocation comes first.

    Parameters
    ----------
    lengths
        (n,) tokens of each cell.
    budget
        Upper bound of cells times longest cell in a batch.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, budget // max(1, int(lengths[order[start]])))
        yield order[start : start + size]
        start += size
