"""The largest of many: argmax and top-k of rows as wide as a vocabulary, found without looking at every entry twice.

PyTorch's argmax and topk read a row an entry at a time on a CPU, its maximum does not: it is twelve times as fast. So
a row is cut into parts, the largest of each part is taken, and only the parts that can hold what is asked for are
searched. The results are exact. Other devices, and rows that are not wide, are left to PyTorch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_WIDE = 4096
"""Entries from which on a row is cut."""
_PART = 1024
_CLASSES = 2048
_MOST = 128
"""Entries up to which topk goes by classes."""
_TRIED = 48
"""Classes of entries that are searched for the winner of a sum. Most rows of logits need fewer than 10."""
_FEW = 4
"""Rows of sums below which looking for classes takes longer than the sums."""


_now = threading.local()


@contextmanager
def reading_nothing() -> Iterator[None]:
    """In this thread nothing is read on the host: what is called is being recorded."""
    _now.is_recorded = True
    try:
        yield
    finally:
        _now.is_recorded = False


def argmax(values: Tensor) -> Tensor:
    """The first of the largest entries of each row. values: [..., n]. Returns [...] int64."""
    if not _is_cut(values):
        return values.argmax(dim=-1)
    width = values.shape[-1]
    whole, rest = values[..., : width - width % _PART], values[..., width - width % _PART :]
    maxima = whole.reshape(*whole.shape[:-1], width // _PART, _PART).amax(dim=-1)  # [..., parts]
    if rest.shape[-1]:
        maxima = torch.cat((maxima, rest.amax(dim=-1, keepdim=True)), dim=-1)
    first = maxima.argmax(dim=-1, keepdim=True) * _PART  # [..., 1], where the first part with the largest begins
    entries = (first + torch.arange(_PART)).clamp_(max=width - 1)  # what is beyond the end repeats the last
    return entries.gather(-1, values.gather(-1, entries).argmax(dim=-1, keepdim=True)).squeeze(-1)


def topk(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries of each row, in descending order, and their places. values: [rows, n]."""
    if not _is_cut(values) or k > _MOST:
        top = values.topk(k, dim=-1)
        return top.values, top.indices
    classes = _Classes(values.shape[-1])
    best = classes.maxima(values).topk(k, dim=-1).indices  # an entry of the k largest lies in one of these classes
    places = classes.members(best)
    top = values.gather(-1, places).topk(k, dim=-1)
    return top.values, places.gather(-1, top.indices)


def argmax_of_sum(values: Tensor, noise: Tensor, rows: Tensor) -> Tensor:
    """`(values.double() + noise[rows]).argmax(-1)`, to the last bit and without these sums where none can win.

    values: [n, entries]. noise: [m, entries] float64. rows: [n] int64, the row of noise that is added to each.

    In a class of entries no sum is above that of its largest value and its largest noise, in rounded numbers too, for
    rounding keeps order. So the classes of the highest bounds are searched, and where another might still hold as much
    as was found, the whole row is.
    """
    if not _is_cut(values) or values.shape[0] < _FEW or getattr(_now, "is_recorded", False):
        return (values.double() + noise[rows]).argmax(dim=-1)
    classes = _Classes(values.shape[-1])
    bounds = classes.maxima(values).double() + classes.maxima(noise)[rows]  # [n, classes]
    highest = bounds.topk(_TRIED + 1, dim=-1)
    places = classes.members(highest.indices[:, :-1])  # [n, members]
    sums = values.gather(-1, places).double() + noise[rows[:, None], places]
    found = sums.amax(dim=-1, keepdim=True)  # [n, 1]
    winner = places.masked_fill(sums != found, values.shape[-1]).amin(dim=-1)  # the first of equals
    unsure = ~(highest.values[:, -1] < found[:, 0])  # a nan is unsure, too
    if unsure.any():
        winner[unsure] = (values[unsure].double() + noise[rows[unsure]]).argmax(dim=-1)
    return winner


def _is_cut(values: Tensor) -> bool:
    return values.device.type == "cpu" and values.shape[-1] >= _WIDE


class _Classes:
    """The entries of a row by their place modulo `count`. Those at its end that are no whole round are in no class."""

    def __init__(self, width: int) -> None:
        dividing = (one for one in range(_CLASSES, _CLASSES // 2, -1) if width % one == 0)
        self.count = next(dividing, _CLASSES)
        self._rounds = width // self.count
        self._rest = torch.arange(self._rounds * self.count, width)

    def maxima(self, values: Tensor) -> Tensor:
        """The largest entry of each class. values: [rows, n]. Returns [rows, count]."""
        whole = values[:, : self._rounds * self.count]
        return whole.reshape(values.shape[0], self._rounds, self.count).amax(dim=1)

    def members(self, classes: Tensor) -> Tensor:
        """The places of all entries of some classes, and of those in none. classes: [rows, k]. Returns [rows, m]."""
        rounds = torch.arange(self._rounds) * self.count
        places = (classes[:, :, None] + rounds).flatten(1)
        return torch.cat((places, self._rest.expand(places.shape[0], -1)), dim=1)
