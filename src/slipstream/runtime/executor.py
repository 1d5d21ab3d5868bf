"""Executors: how passes of a target are run."""

from __future__ import annotations

from collections.abc import Callable

import torch

from slipstream.errors import InputError, unknown_choice
from slipstream.runtime.buckets import Buckets
from slipstream.runtime.captured import CapturedPasses
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
RUNTIMES = ("auto", "eager", "compiled", "captured")
_NEEDS = {"compiled": ("cpu", "a CPU", "captured"), "captured": ("cuda", "CUDA", "compiled")}
"""The device of a runtime, what it is called, and the runtime for the other one."""


def make_executor(sizes: str = "exact", runtime: str = "auto") -> Executor:
    """An executor for passes of "exact" or "fixed" sizes. Raises InputError for others.

    runtime: "eager", "compiled" or "captured"; the sizes of the last two are always fixed. "auto" is eager.
    """
    if sizes not in SIZES:
        raise unknown_choice("sizes", sizes, SIZES)
    if runtime not in RUNTIMES:
        raise unknown_choice("runtime", runtime, RUNTIMES)
    made: dict[str, Callable[[], Executor]] = {"compiled": CompiledPasses, "captured": CapturedPasses}
    return made.get(runtime, SIZES[sizes])()


def check_runtime(runtime: str, device: torch.device) -> None:
    """Raises InputError where passes cannot be run so on the model's device."""
    kind, name, other = _NEEDS.get(runtime, (device.type, "", ""))
    if device.type != kind:
        raise InputError(f"runtime={runtime!r} is for {name}, and the model is on {device}; use {other!r} or 'eager'")
