"""The target's KV cache: preallocated slots, written where the pass says, committed by gather, rolled back by length.

A slot is a place in the cache, a position a place in the text. Slots below `length` hold committed tokens, slot s the
token of position s. From slot `length` on, drafts and trees are written: several nodes may share a position, so the
cache keeps the position of every slot, and attention windows compare positions.

Every layer keeps its whole prefix, windowed layers too: a window is part of the mask.
"""

from __future__ import annotations

import weakref
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

_FIRST_CAPACITY = 256


class KVCache(Cache):
    """Keys and values of one sequence (batch dimension kept), `[batch, heads, slots, head_dim]` in every layer."""

    def __init__(self, num_layers: int, device: torch.device, limit: int | None = None) -> None:
        """limit: slots never needed beyond (context plus the largest draft); None: grows without end."""
        self.length = 0
        self.start = 0  # first slot of the pass in progress
        self.end = 0  # one past its last slot
        self.capacity = 0
        self.limit = limit
        self.positions = torch.empty(0, dtype=torch.int64, device=device)  # [capacity] text position of each slot
        super().__init__(layers=[SlotLayer(self) for _ in range(num_layers)])

    def begin(self, start: int, positions: Tensor) -> None:
        """Announce a pass that writes slots start .. start + n - 1. positions: [n] int64."""
        self.start, self.end = start, start + positions.shape[0]
        if self.end > self.capacity:
            self._reserve(self.end)
        self.positions[self.start : self.end] = positions

    def commit(self, slots: Tensor | None, count: int) -> None:
        """Make `count` tokens permanent: the root in slot `length` and count - 1 accepted ones in `slots`.

        slots: [count - 1] int64, each at least length + 1 and ascending; None when they follow the root already.
        """
        first = self.length + 1
        if slots is not None:
            for layer in self.layers:
                layer.move(slots, first)
            self.positions[first : first + count - 1] = self.positions[slots]
        self.length += count

    def rollback(self, length: int) -> None:
        """Forget everything from slot `length` on. The rows stay in memory until they are overwritten."""
        assert length <= self.length, "a rollback cannot lengthen the cache"
        self.length = length

    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""
        tensors = (tensor for layer in self.layers for tensor in (layer.keys, layer.values) if tensor is not None)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _reserve(self, slots: int) -> None:
        capacity = max(slots, 2 * self.capacity, _FIRST_CAPACITY)
        if self.limit is not None:
            capacity = max(slots, min(capacity, self.limit))
        for layer in self.layers:
            layer.resize(capacity)
        grown = torch.zeros(capacity, dtype=torch.int64, device=self.positions.device)
        grown[: self.capacity] = self.positions
        self.positions, self.capacity = grown, capacity


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer. K and V may differ in width (multi-head latent attention)."""

    is_sliding = False
    keys: Tensor | None
    values: Tensor | None

    def __init__(self, cache: KVCache) -> None:
        super().__init__()
        self._cache = cast(KVCache, weakref.proxy(cache))  # no circle: memory is free with its last user

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = key_states.new_zeros(*key_states.shape[:2], self._cache.capacity, key_states.shape[-1])
        self.values = value_states.new_zeros(*value_states.shape[:2], self._cache.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the pass's rows into its slots; returns all rows up to the last of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        start, end = self._cache.start, self._cache.end
        self.keys[:, :, start:end] = key_states
        self.values[:, :, start:end] = value_states
        return self.keys[:, :, :end], self.values[:, :, :end]

    def move(self, slots: Tensor, first: int) -> None:
        """Copy the rows of `slots` to first, first + 1, ..."""
        for rows in (self.keys, self.values):
            if rows is not None:  # index_select copies, so overlapping source and destination are safe
                rows[:, :, first : first + slots.shape[0]] = rows.index_select(2, slots.to(rows.device))

    def resize(self, capacity: int) -> None:
        for name in ("keys", "values"):
            old = getattr(self, name)
            if old is not None:
                grown = old.new_zeros(*old.shape[:2], capacity, old.shape[-1])
                grown[:, :, : old.shape[2]] = old
                setattr(self, name, grown)

    def get_seq_length(self) -> int:
        return self._cache.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.end, 0

    def get_max_length(self) -> int:
        return -1
