"""Taking a batch in parts, so that memory is bounded and little of a pass is padding: for losses of every method."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_MAX_LOGITS = 1 << 26  # logits held at once: larger batches are taken in parts and recomputed in the backward pass


def in_parts(terms: Callable[..., tuple[Tensor, ...]], rows: Sequence[Tensor], width: int) -> tuple[Tensor, ...]:
    """`terms(*rows)`, which must be sums over rows; many rows are taken in parts and recomputed in the backward pass.

    rows: tensors [m, ..] of the same m. width: logits that a row takes.
    """
    per_part = max(1, _MAX_LOGITS // width)
    if rows[0].shape[0] <= per_part:
        return terms(*rows)
    parts = [
        checkpoint(terms, *(one[first : first + per_part] for one in rows), use_reentrant=False)
        for first in range(0, rows[0].shape[0], per_part)
    ]
    return tuple(torch.stack(sums).sum(dim=0) for sums in zip(*parts, strict=True))


def passes(lengths: Sequence[int], least: float = 0.7) -> list[list[int]]:
    """Rows by pass, the longest first; a pass takes rows of at least `least` times the length of its longest."""
    found: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if found and lengths[row] >= least * lengths[found[-1][0]]:
            found[-1].append(row)
        else:
            found.append([row])
    return found
