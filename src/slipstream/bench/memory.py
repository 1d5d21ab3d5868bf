"""How much memory one answer takes: on CUDA the device's allocator knows, on Linux the kernel does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

_GIB = 2**30
_PROCESSES = Path("/proc")
_RESET_PEAK = "5"  # Linux, proc(5): resets the peak of the resident set to its present size


@dataclass(slots=True)
class Peak:
    """Memory while something ran: None where the system does not tell."""

    peak_gib: float | None = None
    """CUDA: allocated on the device. CPU: resident in this process, weights of all methods that are loaded included."""
    growth_gib: float | None = None
    """Of the peak, what was not there before."""


@contextmanager
def peak_memory(device: torch.device, process: int | None = None) -> Iterator[Peak]:
    """Measure the peak inside the block; the result is filled in at its end.

    process: the number of another process to measure, on a CPU only; None: this one.
    """
    found = Peak()
    if device.type == "cuda":
        if process is not None:
            yield found
            return
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        peak = torch.cuda.max_memory_allocated(device)
        found.peak_gib, found.growth_gib = peak / _GIB, (peak - before) / _GIB
        return
    folder = _PROCESSES / ("self" if process is None else str(process))
    before_kib = _resident_kib(folder, "VmRSS") if _reset_peak(folder) else None
    yield found
    peak_kib = _resident_kib(folder, "VmHWM")
    if before_kib is not None and peak_kib is not None:
        found.peak_gib, found.growth_gib = peak_kib * 1024 / _GIB, max(0, peak_kib - before_kib) * 1024 / _GIB


def _reset_peak(folder: Path) -> bool:
    with suppress(OSError):
        (folder / "clear_refs").write_text(_RESET_PEAK)
        return True
    return False


def _resident_kib(folder: Path, name: str) -> int | None:
    with suppress(OSError):
        for line in (folder / "status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
    return None
