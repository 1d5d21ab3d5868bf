"""The target's KV cache: preallocated slots, written where the pass says, committed by gather, rolled back by length.

A slot is a place in the cache, a position a place in the text. Slots below `length` hold committed tokens, slot s the
token of position s. From slot `length` on, drafts and trees are written: several nodes may share a position, so the
cache keeps the position of every slot, and attention windows compare positions.

Every layer keeps its whole prefix, windowed layers too: a window is part of the mask.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

_FIRST_CAPACITY = 256


class KVCache(Cache):
    """Keys and values of a batch of sequences, `[batch, heads, slots, head_dim]` in every layer.

    Each sequence has its own length; a pass writes the same number of rows for each, equally far behind its length.
    Slots that were never written hold zeros.
    """

    def __init__(self, num_layers: int, device: torch.device, limit: int | None = None, batch: int = 1) -> None:
        """limit: slots never needed beyond (context plus the largest draft); None: grows without end."""
        self.batch = batch
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        """[batch] int64, committed tokens of each sequence: `length` on the device."""
        self.start = 0  # first slot of the pass in progress, in the longest sequence
        self.end = 0  # one past its last slot there
        self.context = 0  # slots that its rows may read
        self.limit = limit
        self.write_to(torch.empty(batch, 0, dtype=torch.int64, device=device))
        self._lengths = [0] * batch
        self.storage = CacheStorage([SlotLayer(self) for _ in range(num_layers)], batch, device)
        super().__init__(layers=self.storage.layers)

    @property
    def length(self) -> int:
        """Committed tokens of the sequence, of the longest one in a batch."""
        return max(self._lengths)

    @property
    def capacity(self) -> int:
        """Slots that there is memory for."""
        return self.storage.capacity

    @property
    def positions(self) -> Tensor:
        """[batch, capacity] int64, the text position of each slot."""
        return self.storage.positions

    def use(self, storage: CacheStorage) -> None:
        """Keep rows in this memory from now on, which no other cache may use; what it holds is forgotten."""
        assert self.length == 0
        for layer in storage.layers:
            layer.belong_to(self)
        self.storage = storage
        self.layers = storage.layers

    def reserve(self, slots: int) -> None:
        """Have memory for at least so many slots."""
        if slots > self.capacity:
            capacity = max(slots, 2 * self.capacity, _FIRST_CAPACITY)
            if self.limit is not None:
                capacity = max(slots, min(capacity, self.limit))
            self.storage.grow(capacity)

    def write_to(self, slots: Tensor) -> None:
        """The pass's rows go to these slots, [batch, n] int64."""
        self.slots, self.places = slots, _short(slots)

    def begin(self, start: int, positions: Tensor, context: int | None = None) -> None:
        """Announce a pass that writes slots start .. start + n - 1.

        start: in the longest sequence; in a shorter one rows lie as far behind its length. positions: [batch, n] int64,
        or [n] of a single sequence. context: slots that rows may read, at least up to the last written; by default
        those.
        """
        positions = positions.reshape(self.batch, -1)
        self.start, self.end = start, start + positions.shape[1]
        self.context = self.end if context is None else context
        self.reserve(self.context)
        behind = torch.arange(start - self.length, self.end - self.length, device=self.lengths.device)  # [n]
        self.write_to(self.lengths[:, None] + behind)
        self.positions.scatter_(1, self.slots, positions)

    def commit(self, slots: Tensor | None, count: int | Sequence[int]) -> None:
        """Make `count` tokens permanent: the root in slot `length` and count - 1 accepted ones in `slots`.

        slots: [batch, n] int64, or [n] of a single sequence, each at least length + 1 and ascending, n at least
        count - 1; None when they follow the root already. count: of each sequence, or of all.
        """
        counts = [count] * self.batch if isinstance(count, int) else list(count)
        if slots is not None:
            self.move(slots.reshape(self.batch, -1))
        self._lengths = [length + more for length, more in zip(self._lengths, counts, strict=True)]
        # Not in place: a cache is made, committed to and rolled back in and out of inference mode.
        self.lengths = self.lengths + (count if isinstance(count, int) else self.lengths.new_tensor(counts))

    def move(self, slots: Tensor) -> None:
        """Copy the rows of `slots` [batch, n] to the slots behind each root. Nothing is committed."""
        places = self.lengths[:, None] + torch.arange(1, slots.shape[1] + 1, device=slots.device)  # [batch, n]
        for layer in self.layers:
            layer.move(slots, places)
        self.positions.scatter_(1, places, self.positions.gather(1, slots))

    def rollback(self, length: int) -> None:
        """Forget everything from slot `length` on. The rows stay in memory until they are overwritten."""
        assert length <= self.length, "a rollback cannot lengthen the cache"
        self._lengths = [min(length, own) for own in self._lengths]
        self.lengths = self.lengths.clamp(max=length)

    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""
        tensors = (tensor for layer in self.layers for tensor in (layer.keys, layer.values) if tensor is not None)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class CacheStorage:
    """The memory of a cache: what stays where it is while texts come and go, until it grows."""

    def __init__(self, layers: list[SlotLayer], batch: int, device: torch.device) -> None:
        self.layers = layers
        self.positions = torch.empty(batch, 0, dtype=torch.int64, device=device)

    @property
    def capacity(self) -> int:
        return self.positions.shape[1]

    @property
    def is_ready(self) -> bool:
        """Whether every layer has been written to."""
        return all(layer.is_initialized for layer in self.layers)

    def grow(self, capacity: int) -> None:
        """Move to larger memory; what was never written holds zeros."""
        for layer in self.layers:
            layer.resize(capacity)
        grown = torch.zeros(self.positions.shape[0], capacity, dtype=torch.int64, device=self.positions.device)
        grown[:, : self.capacity] = self.positions
        self.positions = grown


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer. K and V may differ in width (multi-head latent attention)."""

    is_sliding = False
    keys: Tensor | None
    values: Tensor | None

    def __init__(self, cache: KVCache) -> None:
        super().__init__()
        self.belong_to(cache)

    def belong_to(self, cache: KVCache) -> None:
        """Be one of this cache's layers."""
        self._cache = cast(KVCache, weakref.proxy(cache))  # no circle: memory is free with its last user

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = key_states.new_zeros(*key_states.shape[:2], self._cache.capacity, key_states.shape[-1])
        self.values = value_states.new_zeros(*value_states.shape[:2], self._cache.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the pass's rows into its slots; returns all slots of its context."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        places, context = self._cache.places.to(key_states.device), self._cache.context
        _write(self.keys, places, key_states)
        _write(self.values, places, value_states)
        return self.keys.narrow(2, 0, context), self.values.narrow(2, 0, context)

    def move(self, slots: Tensor, places: Tensor) -> None:
        """Copy the rows of `slots` [batch, n] to `places` [batch, n]."""
        for rows in (self.keys, self.values):
            if rows is not None:  # reading copies, so overlapping source and destination are safe
                _write(rows, _short(places).to(rows.device), _read(rows, slots.to(rows.device)))

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
        return self._cache.context, 0

    def get_max_length(self) -> int:
        return -1


def _read(rows: Tensor, slots: Tensor) -> Tensor:
    """A copy of rows [batch, heads, capacity, d] in `slots` [batch, n]: [batch, heads, n, d]."""
    if slots.shape[0] == 1:
        return rows.index_select(2, slots[0])
    return rows[_sequences(slots), :, slots].transpose(1, 2)


def _short(slots: Tensor) -> Tensor:
    """[n] for the slots [1, n] of a single sequence, which are written in half the time; others as they are."""
    return slots[0] if slots.shape[0] == 1 else slots


def _write(rows: Tensor, slots: Tensor, states: Tensor) -> None:
    """Put `states` [batch, heads, n, d] into `slots` [batch, n] or [n] of rows [batch, heads, capacity, d]."""
    if slots.dim() == 1:
        rows.index_copy_(2, slots, states)
    else:
        rows[_sequences(slots), :, slots] = states.transpose(1, 2)


def _sequences(slots: Tensor) -> Tensor:
    """[batch, 1], the index of each sequence."""
    return torch.arange(slots.shape[0], device=slots.device)[:, None]
