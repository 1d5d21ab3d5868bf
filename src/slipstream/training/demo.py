"""The steps of `train demo`. Each adds one artefact to a folder laid out like `slipstream/demo`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from slipstream.training.pipeline import Pipeline, Step
from slipstream.training.settings import Budget, TargetSettings
from slipstream.training.target import Report, TargetRun, export


def demo_pipeline(
    data: Path,
    work: Path,
    out: Path,
    budget: Budget,
    settings: TargetSettings,
    *,
    device: str = "cpu",
    compiled: bool = True,
    progress: Callable[[Report], None] = lambda report: None,
) -> Pipeline:
    """The pipeline that rebuilds the demo models in `out`, with checkpoints and state in `work`."""

    def train_target() -> None:
        run = TargetRun(data, work / "target", budget, settings, device=device, compiled=compiled)
        run.resume()
        for report in run.steps():
            progress(report)
        export(work / "target", out / "target")

    target = Step(
        name="target",
        run=train_target,
        inputs={"data": data},
        settings={**asdict(settings), **asdict(budget)},
        outputs=(out / "target" / "model.safetensors", out / "target" / "tokenizer.json"),
    )
    return Pipeline([target], work / "pipeline.json")
