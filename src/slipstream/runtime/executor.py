"""Executors: how passes of a target are run."""

from __future__ import annotations

from collections.abc import Callable

import torch

from slipstream.errors import InputError, unknown_choice
from slipstream.runtime.buckets import Buckets
from slipstream.runtime.compiled import CompiledPasses
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
RUNTIMES = ("auto", "eager", "compiled")


def make_executor(sizes: str = "exact", runtime: str = "auto") -> Executor:
    """An executor for passes of "exact" or "fixed" sizes. Raises InputError for others.

    runtime: "eager" or "compiled", whose sizes are always fixed; "auto" is eager.
    """
    if sizes not in SIZES:
        raise unknown_choice("sizes", sizes, SIZES)
    if runtime not in RUNTIMES:
        raise unknown_choice("runtime", runtime, RUNTIMES)
    return CompiledPasses() if runtime == "compiled" else SIZES[sizes]()


def check_runtime(runtime: str, device: torch.device) -> None:
    """Raises InputError where passes cannot be compiled."""
    if runtime == "compiled" and device.type != "cpu":
        raise InputError(f"runtime='compiled' is for a CPU, and the model is on {device}; use runtime='eager'")
