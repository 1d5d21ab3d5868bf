"""The pipeline: steps run when something they depend on changed, and only then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slipstream.errors import ArtifactError, InputError
from slipstream.training.demo import DemoSettings, demo_pipeline
from slipstream.training.pipeline import Pipeline, Stage
from slipstream.training.settings import Budget

Make = Callable[..., Pipeline]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Two steps: `target` writes a file, `head` reads it; each appends its name to `log`."""
    (tmp_path / "data").write_text("v1")

    def build(**settings: Any) -> Pipeline:
        def work(name: str) -> Callable[[], None]:
            def run() -> None:
                (tmp_path / name).write_text(f"{name} of {settings.get(name, 0)}")
                with (tmp_path / "log").open("a") as log:
                    log.write(f"{name} ")

            return run

        def step(name: str, reads: str) -> Stage:
            return Stage(
                name=name,
                run=work(name),
                inputs={reads: tmp_path / reads},
                settings={"size": settings.get(name, 0)},
                outputs=(tmp_path / name,),
            )

        return Pipeline([step("target", "data"), step("head", "target")], tmp_path / "state.json")

    return build


def ran(pipeline: Pipeline, only: str | None = None) -> list[str]:
    return [outcome.name for outcome in pipeline.run(only) if not outcome.skipped]


def test_second_run_skips_everything(make: Make, tmp_path: Path) -> None:
    assert ran(make()) == ["target", "head"]
    assert ran(make()) == []
    assert (tmp_path / "log").read_text() == "target head "


def test_changed_settings_rerun_the_step_and_what_reads_its_output(make: Make) -> None:
    ran(make())
    assert ran(make(head=2)) == ["head"]
    assert ran(make(head=2, target=3)) == ["target", "head"]


def test_rerun_that_gives_the_same_output_leaves_later_steps_alone(make: Make, tmp_path: Path) -> None:
    ran(make())
    (tmp_path / "data").write_text("v2")
    outcomes = list(make().run())
    assert [o.skipped for o in outcomes] == [False, True]
    assert outcomes[0].reason == "inputs changed: data"


@pytest.mark.parametrize("damage", ["missing", "edited"])
def test_missing_or_edited_output_is_made_again(make: Make, tmp_path: Path, damage: str) -> None:
    ran(make())
    if damage == "missing":
        (tmp_path / "head").unlink()
    else:
        (tmp_path / "head").write_text("edited")
    assert ran(make()) == ["head"]


def test_killed_step_runs_again_and_finished_ones_do_not(make: Make) -> None:
    for outcome in make().run():
        assert outcome.name == "target"
        break
    assert ran(make()) == ["head"]


def test_only_one_step_can_be_chosen(make: Make) -> None:
    assert ran(make(), "target") == ["target"]
    with pytest.raises(InputError, match="Did you mean 'target'"):
        ran(make(), "targt")


def test_step_without_its_input_or_output_is_an_error(make: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        ran(make(), "head")
    lazy = Stage(name="lazy", run=lambda: None, outputs=(tmp_path / "never",))
    with pytest.raises(ArtifactError, match="without writing"):
        ran(Pipeline([lazy], tmp_path / "other.json"))


def test_duplicate_names_are_refused(tmp_path: Path) -> None:
    step = Stage(name="twice", run=lambda: None)
    with pytest.raises(InputError, match="twice"):
        Pipeline([step, step], tmp_path / "state.json")


def test_damaged_state_is_reported(make: Make, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"state\.json"):
        ran(make())


def test_demo_pipeline_names_its_steps(tmp_path: Path) -> None:
    pipeline = demo_pipeline(tmp_path, tmp_path, tmp_path, Budget(steps=1), DemoSettings())
    assert [step.name for step in pipeline.steps] == ["target", "eagle", "medusa", "hydra", "draft", "skip-sets"]
