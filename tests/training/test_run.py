"""What every run has from `run.py` and `recipe.py`, whatever it trains: schedules and clipping."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from families import build, prompt_ids
from slipstream.drafting.recipe import Batch, Optimisation, Report, Score, StepLosses
from slipstream.drafting.run_settings import RunSettings
from slipstream.errors import InputError
from slipstream.target.features import Features
from slipstream.target.target import Target
from slipstream.training.data.dialogues import Dialogue
from slipstream.training.run import LOG, STATE, HeadRun


@pytest.fixture(autouse=True)
def _fresh_accelerate_state():
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Counting:
    """A recipe of two weights with gradients of 3 and 4, that needs no features and draws from the global generator."""

    features = Features()
    identity: Mapping[str, Any] = {"method": "counting"}

    def __init__(self, optimisation: Optimisation) -> None:
        self.module: nn.Module = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(self.module.weight)
        self.optimisation = optimisation
        self.seen: list[tuple[int, float]] = []

    def losses(self, module: nn.Module, batch: Batch) -> StepLosses:
        assert batch.features is None
        self.seen.append((batch.seed, torch.rand(()).item()))
        total = module(torch.tensor([[3.0, 4.0]])).sum()
        return StepLosses(total, {"only_loss": total}, Score(torch.tensor([1]), torch.tensor([2])))

    def measure(self, module: nn.Module, batch: Batch) -> Score:
        assert not module.training
        return Score(torch.tensor([1, 0]), torch.tensor([1, 2]))

    def save(self, out: Path, steps: int) -> None:
        (out / "saved").write_text(str(steps))


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(build("llama").float())


def run(target: Target, out: Path, **optimisation: Any) -> tuple[Counting, list[Report]]:
    dialogues = [Dialogue(tuple(prompt_ids(5, seed=seed)), (True,) * 5) for seed in range(20)]
    settings = RunSettings(steps=4, batch_size=3, report_every=2, learning_rate=0.1, warmup_steps=1)
    recipe = Counting(Optimisation(**optimisation))
    one = HeadRun(target, dialogues, out, settings, recipe)
    one.resume()
    return recipe, list(one.steps())


def test_reports_and_saves_are_the_recipes(target, tmp_path):
    _, reports = run(target, tmp_path)
    assert [one.held_out for one in reports] == [(), (1.0, 0.0), (), (1.0, 0.0)]
    assert reports[0].accuracy == (0.5,)
    assert set(reports[0].parts) == {"only_loss"}
    assert (tmp_path / "saved").read_text() == "4"


def test_draws_follow_from_seed_and_step_alone(target, tmp_path):
    """So dropout of a resumed run is that of a whole one."""
    whole, _ = run(target, tmp_path / "whole")
    torch.rand(7)
    again, _ = run(target, tmp_path / "again")
    assert whole.seen == again.seen
    assert len({draw for _, draw in whole.seen}) == 4


def test_gradients_are_clipped_by_value_or_by_norm(target, tmp_path, monkeypatch):
    seen: list[list[float]] = []
    step = torch.optim.AdamW.step

    def watched(self, *args: Any, **kwargs: Any) -> Any:
        seen.append(self.param_groups[0]["params"][0].grad[0].tolist())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    for number, (how, expected) in enumerate(
        (({}, [3.0, 4.0]), ({"clip_value": 3.5}, [3.0, 3.5]), ({"clip_norm": 1.0}, [0.6, 0.8]))
    ):
        seen.clear()
        run(target, tmp_path / str(number), **how)
        assert seen[0] == pytest.approx(expected, rel=1e-4)


def test_schedules_rise_and_fall():
    linear, cosine = Optimisation(), Optimisation(schedule="cosine", final_share=0.25)
    assert [linear.rate(step, 12, 2) for step in (0, 1, 2, 7, 11)] == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.1])
    assert [cosine.rate(step, 12, 2) for step in (0, 1, 2, 7)] == pytest.approx([0.5, 1.0, 1.0, 0.625])
    assert cosine.rate(1000, 1001, 2) == pytest.approx(0.25, rel=1e-3)


def test_a_run_killed_while_its_state_is_replaced_goes_on(target, tmp_path):
    _, reports = run(target, tmp_path)
    assert len(reports) == 4
    (tmp_path / STATE).rename(tmp_path / f"{STATE}.new")  # the old state was moved away, the new one is not yet there
    _, more = run(target, tmp_path)
    assert more == []  # nothing was left to do
    assert (tmp_path / STATE / LOG).is_file()


def test_other_text_of_the_same_size_is_not_the_same_run(target, tmp_path):
    settings = RunSettings(steps=1, batch_size=2, held_out=0, report_every=1)
    first, other = ([Dialogue((token,) * 6, (True,) * 6) for _ in range(4)] for token in (5, 7))
    HeadRun(target, first, tmp_path, settings, Counting(Optimisation())).finish()
    with pytest.raises(InputError, match="dialogues"):
        HeadRun(target, other, tmp_path, settings, Counting(Optimisation())).resume()
