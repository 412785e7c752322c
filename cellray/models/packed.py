"""Cells of unequal length side by side in one array, without padding, and attention within each of them.

Contract: rows of a packed (t, width) array belong to segments, cell after cell; attention mixes rows of the same
segment only, so a cell's numbers do not depend on the cells it is packed with. On a GPU in half precision PyTorch's
variable-length attention does all segments in one call, in float32 one padded batch does; on a CPU, where that costs
more, they are done one by one. It knows no model.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_HALF = (torch.float16, torch.bfloat16)
_HEAD_STEP = 8  # the kernel of ragged attention takes heads of such widths only


@dataclass(frozen=True)
class Segments:
    """Where segments begin and end: ``offsets`` (n + 1,) int32 on the arrays' device, and ``lengths``.

    ``lengths`` are plain numbers, so that looking at them never waits for a GPU.
    """

    offsets: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, lengths: list[int], device: torch.device | str = "cpu") -> "Segments":
        """Lay out segments of ``lengths`` rows one after the other."""
        offsets = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        offsets[1:] = torch.tensor(lengths, dtype=torch.int32).cumsum(0)
        return cls(offsets.to(device, non_blocking=True), tuple(lengths))

    def to(self, device: torch.device | str) -> "Segments":
        """Return the same segments of arrays on a device."""
        return Segments(self.offsets.to(device, non_blocking=True), self.lengths)

    @property
    def first(self) -> Tensor:
        """The first row of every segment, (n,) int64."""
        return self.offsets[:-1].long()

    @property
    def positions(self) -> Tensor:
        """Each row's place in its segment, (t,) int64."""
        lengths = (self.offsets[1:] - self.offsets[:-1]).long()
        starts = self.first.repeat_interleave(lengths, output_size=sum(self.lengths))
        return torch.arange(len(starts), device=starts.device) - starts

    def of_one(self) -> "Segments":
        """As many segments of one row each."""
        return Segments.of([1] * len(self.lengths), self.offsets.device)

    @property
    def longest(self) -> int:
        """Rows of the longest segment."""
        return max(self.lengths, default=0)


def exact(states: Tensor) -> torch.autocast:
    """Return a context in which float32 stays float32: for the last steps, where labels are close to each other."""
    return torch.autocast(states.device.type, enabled=False)


def places(offsets: np.ndarray, rows: np.ndarray, longest: int) -> tuple[np.ndarray, list[int]]:
    """Say where the tokens of packed cells come from.

    Parameters
    ----------
    offsets
        (n + 1,) int64 offsets of all cells' tokens.
    rows
        (m,) the cells to pack.
    longest
        Rows that a cell may take, that of CLS included; later tokens are cut off.

    Returns
    -------
    index, lengths
        (t,) int64 token of each packed row, -1 for the CLS row that every cell begins with; and rows of each cell.
    """
    lengths = np.minimum(offsets[rows + 1] - offsets[rows], longest - 1) + 1
    ends = np.cumsum(lengths)
    within = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - lengths, lengths)
    index = np.where(within > 0, np.repeat(offsets[rows], lengths) + within - 1, -1)
    return index, lengths.tolist()


def attention(query: Tensor, key: Tensor, value: Tensor, queries: Segments, keys: Segments, heads: int) -> Tensor:
    """Multi-head scaled dot-product attention of each query segment to the key segment of the same number.

    Parameters
    ----------
    query, key, value
        (tq, width), (tk, width) and (tk, width), heads side by side in ``width``.
    queries, keys
        Their segments, equally many.

    Returns
    -------
    Tensor
        (tq, width).
    """
    if query.is_cuda and query.dtype in _HALF and query.shape[-1] // heads % _HEAD_STEP == 0:
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = (states.unflatten(-1, (heads, -1)) for states in (query, key, value))
        mixed = varlen_attn(q, k, v, queries.offsets, keys.offsets, queries.longest, keys.longest)
        return mixed.flatten(1)  # type: ignore[union-attr]
    if query.is_cuda and keys.lengths:
        return _padded(query, key, value, queries, keys, heads)
    parts = []
    split = (query.split(queries.lengths), key.split(keys.lengths), value.split(keys.lengths))
    for one in zip(*split, strict=True):
        q, k, v = (states.unflatten(-1, (heads, -1)).transpose(0, 1)[None] for states in one)
        parts.append(F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1))
    return torch.cat(parts) if parts else query


def _padded(query: Tensor, key: Tensor, value: Tensor, queries: Segments, keys: Segments, heads: int) -> Tensor:
    """Attention as ``attention`` has it, in one call for all segments, laid out as if they were equally long."""
    asked, held = _rows_of(queries), _rows_of(keys)
    q, k, v = (
        torch.zeros(len(segments.lengths) * segments.longest, states.shape[1], dtype=states.dtype, device=states.device)
        .index_copy(0, rows, states)
        .view(len(segments.lengths), segments.longest, heads, -1)
        .transpose(1, 2)
        for states, segments, rows in ((query, queries, asked), (key, keys, held), (value, keys, held))
    )
    lengths = keys.offsets[1:] - keys.offsets[:-1]
    real = torch.arange(keys.longest, device=key.device) < lengths[:, None]
    mixed = F.scaled_dot_product_attention(q, k, v, real[:, None, None])
    return mixed.transpose(1, 2).flatten(2).flatten(0, 1)[asked]


def _rows_of(segments: Segments) -> Tensor:
    """Return each row's place where all segments take as many rows as the longest, (t,) int64."""
    lengths = (segments.offsets[1:] - segments.offsets[:-1]).long()
    number = torch.arange(len(lengths), device=lengths.device)
    return segments.positions + segments.longest * number.repeat_interleave(lengths, output_size=sum(segments.lengths))
