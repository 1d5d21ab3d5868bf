"""Costs on disk: measured once for a machine, read from then on, and never trusted blindly."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from families import build
from slipstream.files.cache_folder import cache_folder
from slipstream.runtime import kept_costs
from slipstream.runtime.costs import LevelCosts, Measured, PassCosts
from slipstream.runtime.kept_costs import KeptCosts
from slipstream.target.target import Target

FOUND = PassCosts(((64, ((1, 1.0), (8, 2.0))),))


class Meter:
    """Stands in for measuring passes."""

    def __init__(self) -> None:
        self.times, self.costs, self.spread = 0, FOUND, 0.0

    def __call__(self, target: Target) -> Measured:
        self.times += 1
        return Measured(self.costs, 1.5, self.spread)


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Meter:
    made = Meter()
    monkeypatch.setattr(kept_costs, "measure_passes", made)
    return made


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(build("llama"))


def test_passes_are_measured_once_and_read_from_then_on(target: Target, meter: Meter, caplog) -> None:
    caplog.set_level(logging.INFO, "slipstream")
    first, second = KeptCosts(target), KeptCosts(target)
    assert first.passes() == second.passes() == FOUND
    assert (meter.times, first.measured_s, second.measured_s) == (1, 1.5, 0.0)
    assert first.path.parent == cache_folder() / "costs"
    said = [record.getMessage() for record in caplog.records]
    assert "in 1.5 s, kept in" in said[0]
    assert said[1].startswith("read the passes of")


def test_fresh_measures_again_and_keeps_that(target: Target, meter: Meter) -> None:
    KeptCosts(target).passes()
    meter.costs = PassCosts(((64, ((1, 3.0),)),))
    assert KeptCosts(target, fresh=True).passes() == meter.costs == KeptCosts(target).passes()
    assert meter.times == 2


def test_another_number_of_threads_or_dtype_is_another_machine(target: Target, meter: Meter) -> None:
    kept = KeptCosts(target)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        other = KeptCosts(target)
    finally:
        torch.set_num_threads(before)
    double = KeptCosts(Target(build("llama").to(torch.bfloat16)))
    assert len({kept.path, other.path, double.path}) == 3
    assert double.target.hash == target.hash


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"machine": {"format": 0}, "costs": {}}',
        '{"machine": MACHINE}',
        '{"machine": MACHINE, "costs": {"passes": [[64, [[1, "soon"]]]]}}',
        '{"machine": MACHINE, "costs": {"passes": 7}}',
    ],
)
def test_a_file_that_says_nothing_usable_is_measured_anew_and_replaced(
    content: str, target: Target, meter: Meter
) -> None:
    kept = KeptCosts(target)
    kept.path.parent.mkdir(parents=True)
    kept.path.write_text(content.replace("MACHINE", json.dumps(kept.machine)))
    assert kept.passes() == FOUND
    assert meter.times == 1
    assert KeptCosts(target).passes() == FOUND
    assert meter.times == 1


def test_what_a_busy_machine_shows_is_used_and_not_kept(target: Target, meter: Meter, caplog) -> None:
    caplog.set_level(logging.INFO, "slipstream")
    meter.spread = 0.5
    assert KeptCosts(target).passes() == FOUND
    assert not KeptCosts(target).path.exists()
    assert "not kept, for the machine was too busy to tell" in caplog.text


def test_levels_are_not_kept_where_a_plain_pass_beside_them_takes_longer_than_is_known(
    target: Target, meter: Meter
) -> None:
    level = LevelCosts(4, 0.1, 0.2)
    meter.costs = PassCosts(((64, ((1, 1e-9), (8, 1.0))),))  # as on a machine that was quick once
    kept = KeptCosts(target)
    kept.passes()
    assert kept.levels("a head", lambda: Measured(level, 0.1, 0.0)) == level
    assert kept.levels("a head", lambda: Measured(LevelCosts(4, 0.3, 0.4), 0.1, 0.0)) == LevelCosts(4, 0.3, 0.4)


def test_a_cache_that_cannot_be_written_is_no_obstacle(target: Target, meter: Meter, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path / "file"))
    assert KeptCosts(target).passes() == FOUND


def test_several_kinds_share_a_file_and_no_draft_of_it_is_left(target: Target, meter: Meter) -> None:
    kept, level = KeptCosts(target), LevelCosts(4, 0.1, 0.2)
    kept.passes()
    assert kept.levels("a head", lambda: Measured(level, 0.1, 0.0)) == level
    assert KeptCosts(target).levels("a head", lambda: pytest.fail("measured again")) == level
    assert KeptCosts(target).passes() == FOUND
    assert [path.name for path in Path(kept.path.parent).iterdir()] == [kept.path.name]


def test_processes_that_share_a_target_go_by_what_they_agree_on(target: Target, meter: Meter, monkeypatch) -> None:
    """Another process has read them where this one has no file."""
    monkeypatch.setattr(kept_costs, "agree", lambda own: FOUND)
    assert KeptCosts(target).passes() == FOUND
    assert meter.times == 0


def test_what_is_known_is_told_without_measuring_kept_or_not(meter: Meter) -> None:
    target = Target(build("llama"))
    assert KeptCosts(target).known_passes() in (None, FOUND)  # another test may have kept them
    meter.spread, meter.costs = 9.0, PassCosts(((64, ((1, 5.0),)),))  # too unquiet to keep
    KeptCosts(target, fresh=True).passes()
    assert (KeptCosts(target).known_passes(), meter.times) == (meter.costs, 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 3)
        assert KeptCosts(target).known_passes() is None
    finally:
        torch.set_num_threads(before)
    assert meter.times == 1
