"""Executors: how passes of a target are run."""

from __future__ import annotations

from collections.abc import Callable

from slipstream.errors import unknown_choice
from slipstream.runtime.buckets import Buckets
from slipstream.target.passes import Executor


class FixedSizes(Executor):
    """Runs passes eagerly in the sizes of a few buckets. A pass may cost more than in its exact size."""

    def __init__(self, buckets: Buckets | None = None) -> None:
        self._buckets = Buckets() if buckets is None else buckets

    def rows(self, count: int) -> int:
        return self._buckets.fit_rows(count)

    def context(self, slots: int) -> int:
        return self._buckets.fit_context(slots)


SIZES: dict[str, Callable[[], Executor]] = {"exact": Executor, "fixed": FixedSizes}
"""By what `load` calls them."""


def make_executor(sizes: str) -> Executor:
    """An executor for passes of "exact" or "fixed" sizes. Raises InputError for others."""
    if sizes not in SIZES:
        raise unknown_choice("sizes", sizes, SIZES)
    return SIZES[sizes]()
