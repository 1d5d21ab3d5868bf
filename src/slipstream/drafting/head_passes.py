"""Passes of a draft head's own layers, which have a KV cache of their own: the target's executor runs them.

A head is prepared as the target is, so that what its executor does for the target's layers (grouped attention, compiled
layers, packed weights, sizes of a few buckets) it does for the head's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slipstream.target.cache import KVCache
from slipstream.target.features import Features
from slipstream.target.masks import additive, allowed_slots
from slipstream.target.passes import PassKey
from slipstream.target.target import Target


@dataclass(frozen=True, slots=True)
class HeadInputs:
    """Everything that such a pass depends on, beside the weights and the cache."""

    rows: tuple[Tensor, ...]  # each [1, n, width]: what the head reads of each row
    positions: Tensor  # [1, n] int64
    mask: Tensor  # [1, 1, n, context], additive


class HeadPasses:
    """Runs a head whose forward takes (*rows, positions, mask, cache) and returns hidden states [1, n, h]."""

    def __init__(self, target: Target, head: nn.Module, dtype: torch.dtype) -> None:
        """dtype: the head's, and that of its masks."""
        self._executor, self._head, self._dtype = target.executor, target.prepared(head), dtype

    def run(self, rows: Sequence[Tensor], positions: Tensor, visible: Tensor, cache: KVCache, start: int) -> Tensor:
        """The head over rows [n, width] that see all committed rows, and of the later slots what `visible` says.

        Row i is written to slot start + i. positions: [n] int64. visible: [n, start - cache.length + n] bool. Returns
        [n, h]; nothing is committed.
        """
        count = positions.shape[0]
        if (size := self._executor.rows(count)) > count:
            filled = torch.arange(size, device=positions.device).clamp(max=count - 1)  # [size] copies of the last row
            rows = [one.index_select(0, filled) for one in rows]
            positions, visible = positions.index_select(0, filled), visible.index_select(0, filled)
        cache.begin(start, positions, self._executor.context(start + size))
        mask = additive(allowed_slots(visible[None], cache.lengths, cache.context), self._dtype)
        inputs = HeadInputs(tuple(one[None] for one in rows), positions[None], mask)
        key = PassKey(self._head, Features(), 1, size, cache.context, all_logits=True)
        return self._executor.run(key, self._forward, inputs, cache)[0, :count]

    def _forward(self, inputs: HeadInputs, cache: KVCache) -> Tensor:
        output: Tensor = self._head(*inputs.rows, inputs.positions, inputs.mask, cache)
        return output
