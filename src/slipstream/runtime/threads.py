"""Threads of PyTorch on a CPU: how they wait for each other, and how many a command uses.

PyTorch's threads meet after every operation, many times in a pass. Threads that sleep meanwhile are late for the next
one; threads that spin without limit, GNU OpenMP's own choice, stall as soon as another program wants their core.
Threads that spin for a moment and then sleep come near the better of the two in either case
(`benchmarks/thread_cost.py`). OpenMP reads from the environment how to wait, once, when PyTorch is imported.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from typing import TYPE_CHECKING

from slipstream.errors import InputError

if TYPE_CHECKING:
    from slipstream.target.target import Target

logger = logging.getLogger(__name__)

WAITING = {"GOMP_SPINCOUNT": "20000", "KMP_BLOCKTIME": "1"}
"""By variable: turns to spin of GNU's OpenMP, which PyTorch has on Linux; milliseconds of Intel's and LLVM's, which it
has elsewhere (the same idea, not measured)."""
_SAID_BY_USER = ("OMP_WAIT_POLICY", *WAITING)
_SMALL = 25_000_000
"""Parameters below which a command uses one thread. On two cores two are faster where nothing else runs, by 1.2 to 1.6
times; where other programs want both cores, one is 5 times as fast (`benchmarks/thread_cost.py`)."""


def settle_waiting() -> None:
    """Let threads spin for a moment, if that can still be said and the environment says nothing else."""
    if "torch" not in sys.modules and not _is_settled():
        os.environ.update(WAITING)


def _is_settled() -> bool:
    return any(name in os.environ for name in _SAID_BY_USER)


def check_threads(threads: int | None, name: str = "--threads") -> None:
    """Raises InputError for a number of threads that cannot be. name: of the setting."""
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise InputError(f"{name} is {threads!r}; it must be at least 1")


def settle_threads(target: Target, threads: int | None) -> None:
    """As many as were asked for; else one for a small model on a CPU, unless OMP_NUM_THREADS says otherwise."""
    import torch

    small = target.device.type == "cpu" and target.model.num_parameters() < _SMALL
    if threads is None and small and "OMP_NUM_THREADS" not in os.environ:
        threads = 1
    if threads is not None:
        torch.set_num_threads(threads)


def check_waiting(target: Target) -> None:
    """Warn, once a process, where several threads will run a target and PyTorch came before how they are to wait."""
    import torch

    if target.device.type == "cpu" and torch.get_num_threads() > 1 and not _is_settled():
        _warn_of_spinning()


@functools.cache
def _warn_of_spinning() -> None:
    logger.warning(
        "PyTorch was imported before slipstream, so its threads spin without limit while they wait for each other: "
        "passes become many times slower as soon as other programs use the processor. Import slipstream first, or set "
        "GOMP_SPINCOUNT=%s before Python starts.",
        WAITING["GOMP_SPINCOUNT"],
    )
