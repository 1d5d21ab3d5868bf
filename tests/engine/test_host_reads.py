"""Tensors are read on the host once a cycle: a GPU must not wait for the host, nor the host for it, more often."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

import slipstream
from slipstream.core import largest

READS = ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__", "__contains__")
FIXED: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer-skip": {"width": 3, "depth": 3, "total": 6},
    "eagle2": {"width": 4, "depth": 3, "total": 12},
    "eagle": {"total": "all"},
    "medusa": {"total": 12},
    "hydra": {"total": 12},
    "draft-model": {"width": 3, "depth": 3, "total": 6},
    "prompt-lookup": {"length": 3, "branches": 1},
    "lookahead": {"window": 3, "level": 3, "guesses": 3},
}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often tensors are read on the host from now on, by the method that reads."""
    counts: Counter[str] = Counter()

    def counting(name: str) -> Any:
        own = getattr(torch.Tensor, name)

        def read(self: torch.Tensor, *args: Any) -> Any:
            counts[name] += 1
            with monkeypatch.context() as inner:  # what a read does within is the same read
                for other, plain in originals.items():
                    inner.setattr(torch.Tensor, other, plain)
                return own(self, *args)

        return read

    originals = {name: getattr(torch.Tensor, name) for name in READS}
    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, counting(name))
    monkeypatch.setattr(
        largest, "_is_cut", lambda values: False
    )  # its short cut is for a CPU alone, where reads are free
    return counts


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("method", FIXED)
def test_a_cycle_of_a_fixed_size_reads_once(method: str, temperature: float, request: pytest.FixtureRequest) -> None:
    model = slipstream.load("tiny", method, **FIXED[method])
    model.generate("Hello", max_new_tokens=4)  # what is read once, when a model is first used
    reads = request.getfixturevalue("reads")
    answer = model.generate("Write a list of ten animals.", max_new_tokens=24, temperature=temperature, seed=1)
    assert answer.stats.num_cycles > 1
    assert reads == {"tolist": answer.stats.num_cycles}


def test_sizes_by_cost_read_more_only_after_a_look(request: pytest.FixtureRequest) -> None:
    model = slipstream.load("tiny", "eagle2")
    model.generate("Hello", max_new_tokens=4)
    reads = request.getfixturevalue("reads")
    answer = model.generate("Write a list of ten animals.", max_new_tokens=60, temperature=0)
    assert set(reads) == {"tolist"}
    assert answer.stats.num_cycles <= reads["tolist"] <= 1.5 * answer.stats.num_cycles


def test_a_read_too_many_is_counted(reads: Counter[str]) -> None:
    assert torch.tensor([1.0, 2.0]).max().item() == 2
    assert bool(torch.tensor(True))
    assert reads == {"item": 1, "__bool__": 1}
