"""The training loop: exact resumption, clear refusals, an export that loads."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from slipstream.errors import ArtifactError, InputError
from slipstream.training.data.corpus import Source
from slipstream.training.data.held_out import TaskBits
from slipstream.training.settings import Budget, TargetSettings, learning_rate
from slipstream.training.target import (
    BEST,
    CHECKPOINT,
    TargetRun,
    export,
    measure,
)

NUM_STEPS = 6
Start = Callable[..., TargetRun]


@pytest.fixture(scope="module")
def start(data: Path, mix: dict[str, Source], settings: TargetSettings) -> Start:
    """Make a run in a folder; keyword arguments replace settings."""

    def make(out: Path, budget: Budget | None = None, **changes: object) -> TargetRun:
        return TargetRun(
            data,
            out,
            budget or Budget(steps=NUM_STEPS),
            replace(settings, **changes),
            mix=mix,
            compiled=False,
            checkpoint_every_s=0.0,
        )

    return make


@pytest.fixture(scope="module")
def finished(start: Start, tmp_path_factory: pytest.TempPathFactory) -> TargetRun:
    """An uninterrupted run."""
    run = start(tmp_path_factory.mktemp("finished"))
    for _ in run.steps():
        pass
    return run


def weights(run: TargetRun) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.model.named_parameters()}


def test_loss_falls(start: Start, tmp_path: Path) -> None:
    reports = list(start(tmp_path, Budget(steps=25), learning_rate=0.02).steps())
    assert reports[-1].loss < reports[0].loss - 0.3
    assert reports[-1].num_tokens == 25 * 128


@pytest.mark.parametrize("killed_after", [2, 4])
def test_killed_run_continues_bit_for_bit(start: Start, finished: TargetRun, tmp_path: Path, killed_after: int) -> None:
    shutil.copytree(finished.out / "corpus", tmp_path / "corpus")
    shutil.copytree(finished.out / "tokenizer", tmp_path / "tokenizer")
    first = start(tmp_path)
    for report in first.steps():
        if report.step == killed_after:
            break
    (tmp_path / f"{CHECKPOINT}.tmp").write_bytes(b"torn")  # killed while writing the next one
    second = start(tmp_path)
    assert second.resume()
    assert second.step == killed_after
    steps = [report.step for report in second.steps()]
    assert steps == list(range(killed_after + 1, NUM_STEPS + 1))
    assert all(torch.equal(p, weights(finished)[name]) for name, p in weights(second).items())


def test_finished_run_has_nothing_left_to_do(start: Start, finished: TargetRun) -> None:
    again = start(finished.out)
    assert again.resume()
    assert list(again.steps()) == []


def test_other_settings_are_refused_by_name(start: Start, finished: TargetRun) -> None:
    with pytest.raises(InputError, match=r"learning_rate 0\.003 \(now 0\.5\)"):
        start(finished.out, learning_rate=0.5).resume()


def test_nothing_to_resume_in_a_new_folder(start: Start, tmp_path: Path) -> None:
    assert not start(tmp_path).resume()


def test_log_holds_settings_budget_and_losses(finished: TargetRun) -> None:
    log = json.loads((finished.out / "log.json").read_text())
    assert log["settings"]["hidden_size"] == 16
    assert log["budget"] == {"hours": None, "steps": NUM_STEPS}
    assert set(log["losses"][-1]["held_out"]) == {"chat", "code", "plain text"}


def test_best_weights_are_those_of_the_lowest_held_out_loss(finished: TargetRun) -> None:
    means = [sum(entry["held_out"].values()) / len(entry["held_out"]) for entry in finished.history]
    assert math.isclose(finished.best, min(means))


def test_export_loads_with_the_trained_weights(finished: TargetRun, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export(finished.out, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 4
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == 0
    trained = finished.model.model.layers[1].mlp.down_proj.weight.to(torch.bfloat16)
    assert torch.equal(model.model.layers[1].mlp.down_proj.weight, trained)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_export_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=BEST):
        export(tmp_path, tmp_path / "out")


def test_exported_model_is_measured_on_every_task(finished: TargetRun, tmp_path: Path) -> None:
    export(finished.out, tmp_path / "export")
    table = measure(tmp_path / "export", finished.corpus)
    assert {row.task for row in table} <= {"chat", "code", "plain text"}
    assert all(0 < row.target < 20 for row in table)
    assert [TaskBits(**row) for row in json.loads((tmp_path / "held_out.json").read_text())] == table


def test_learning_rate_warms_up_stays_and_falls_to_zero() -> None:
    settings = TargetSettings(warmup_steps=10, final_share=0.5)
    assert learning_rate(settings, 0, 0.0) == pytest.approx(settings.learning_rate / 10)
    assert learning_rate(settings, 50, 0.4) == settings.learning_rate
    assert learning_rate(settings, 80, 0.75) == pytest.approx(settings.learning_rate / 2)
    assert learning_rate(settings, 100, 1.0) == 0


def test_hours_end_a_run(start: Start, tmp_path: Path) -> None:
    reports = list(start(tmp_path, Budget(hours=1e-9)).steps())
    assert len(reports) == 1
    assert reports[0].held_out


@pytest.mark.parametrize("arguments", [{}, {"hours": 1.0, "steps": 5}])
def test_budget_is_exactly_one_of_hours_and_steps(arguments: dict[str, float]) -> None:
    with pytest.raises(InputError, match="either --hours or --steps"):
        Budget(**arguments)


@pytest.mark.parametrize("changes", [{"tokens_per_step": 100}, {"row_lengths": ((1.0, 48),)}, {"context": 16}])
def test_settings_that_do_not_fit_together_are_refused(settings: TargetSettings, changes: dict[str, object]) -> None:
    with pytest.raises(InputError):
        replace(settings, **changes)


def test_default_settings_fit_the_size_limit() -> None:
    s = TargetSettings()
    kv = s.hidden_size * s.num_kv_heads // s.num_heads
    layer = 2 * s.hidden_size**2 + 2 * s.hidden_size * kv + 3 * s.hidden_size * s.intermediate_size
    assert 2 * (s.vocab_size * s.hidden_size + s.num_layers * layer) < 24e6
