"""Packed cells with a share of their genes left out, drawn anew each time: shallow cells are then nothing new.

Contract: CLS stays, with the value that classification gives it; the draws come from the generator alone.
"""

from collections.abc import Sequence

import numpy as np

from cellray.models.scgpt import ScGPTConfig, packed_inputs

CLS_VALUE = 0.0
"""Value of CLS where cells are classified, as upstream's fine-tuning has it."""

Packed = tuple[np.ndarray, np.ndarray, np.ndarray]


def thinned(
    config: ScGPTConfig,
    cells: tuple[np.ndarray, np.ndarray, np.ndarray],
    rows: np.ndarray,
    rng: np.random.Generator,
    drops: Sequence[float],
) -> Packed:
    """Pack cells ``rows`` of ragged (tokens, bins, offsets), each without one of the shares ``drops`` of its genes.

    Returns
    -------
    ids, values, cell
        (t,) int64, float32 and int64: of which of the ``rows`` each is; CLS first in every cell.
    """
    ids, values, lengths = packed_inputs(config, *cells, rows, CLS_VALUE)
    cell = np.repeat(np.arange(len(rows)), lengths)
    first = np.r_[True, cell[1:] != cell[:-1]]
    kept = first | (rng.random(len(ids)) >= rng.choice(drops, len(rows))[cell])
    return ids[kept], values[kept], cell[kept]
