from __future__ import annotations

from mmap import mmap
from pathlib import Path

import pytest
import torch

from slipstream.bench import memory
from slipstream.bench.memory import peak_memory

CPU = torch.device("cpu")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be reset on Linux only")
def test_a_passing_allocation_is_in_the_peak_and_not_in_the_next_one() -> None:
    size = 64 * 2**20
    with peak_memory(CPU) as large:
        block = mmap(-1, size)  # past malloc, which may have as much at hand that other tests gave back
        for place in range(0, size, 4096):
            block[place] = 1
        block.close()
    with peak_memory(CPU) as small:
        pass
    assert large.growth_gib is not None
    assert small.growth_gib is not None
    assert large.growth_gib >= 60 / 1024
    assert small.growth_gib < 30 / 1024
    assert large.peak_gib is not None
    assert large.peak_gib > large.growth_gib


def test_a_system_that_does_not_tell_gives_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_PROCESSES", tmp_path / "none")
    with peak_memory(CPU) as found:
        pass
    assert found.peak_gib is found.growth_gib is None
