import time

import pytest
import torch

from slipstream.runtime.clock import PARTS, CycleClock

CPU = torch.device("cpu")


@pytest.fixture
def ticks(monkeypatch):
    """A host clock that stands still but for what a test adds to it."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


def test_every_second_of_a_cycle_belongs_to_one_part(ticks) -> None:
    clock = CycleClock(CPU)
    clock.begin()
    for part, seconds in (("draft", 1.0), ("build", 0.5), ("verify", 4.0), ("sample", 0.25)):
        ticks(seconds)
        clock.lap(part)
    ticks(2.0)
    assert clock.seconds_by_part() == {"draft": 1.0, "build": 0.5, "verify": 4.0, "sample": 0.25, "host": 2.0}


def test_a_part_may_come_in_pieces(ticks) -> None:
    clock = CycleClock(CPU)
    clock.begin()
    for part, seconds in (("draft", 1.0), ("verify", 2.0), ("draft", 3.0)):
        ticks(seconds)
        clock.lap(part)
    found = clock.seconds_by_part()
    assert (found["draft"], found["verify"], found["host"]) == (4.0, 2.0, 0.0)


def test_each_cycle_starts_anew(ticks) -> None:
    clock = CycleClock(CPU)
    for _ in range(2):
        clock.begin()
        ticks(1.0)
        clock.lap("verify")
        assert clock.seconds_by_part() == dict.fromkeys(PARTS, 0.0) | {"verify": 1.0}
        ticks(50.0)  # between cycles: the consumer's time
