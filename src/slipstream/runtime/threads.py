"""How many threads of PyTorch a command uses on a CPU."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from slipstream.errors import InputError

if TYPE_CHECKING:
    from slipstream.target.target import Target

_SMALL = 25_000_000
"""Parameters below which one thread is faster than two that sleep while they wait: an operation is over before the
other is awake (`benchmarks/thread_cost.py`, on two cores)."""


def check_threads(threads: int | None) -> None:
    """Raises InputError for a number of threads that cannot be."""
    if threads is not None and threads < 1:
        raise InputError(f"--threads is {threads}; it must be at least 1")


def settle_threads(target: Target, threads: int | None) -> None:
    """As many as were asked for; else one for a small model on a CPU, unless OMP_NUM_THREADS says otherwise."""
    import torch

    small = target.device.type == "cpu" and target.model.num_parameters() < _SMALL
    if threads is None and small and "OMP_NUM_THREADS" not in os.environ:
        threads = 1
    if threads is not None:
        torch.set_num_threads(threads)
