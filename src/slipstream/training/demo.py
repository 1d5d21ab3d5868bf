"""The steps of `train demo`: the target, then everything that is made for it. Each adds one artefact to a folder laid
out like `slipstream/demo`.

A new target makes every later step run again: all of them read its weights.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from slipstream.drafting.recipe import Report as HeadReport
from slipstream.drafting.run_settings import RunSettings
from slipstream.methods.draft_model.settings import DraftSettings
from slipstream.methods.eagle.settings import EagleSettings
from slipstream.methods.hydra.settings import HydraSettings
from slipstream.methods.medusa.settings import MedusaSettings
from slipstream.search.demo_sets import DEMO_TASKS, SETTINGS, find_demo_sets
from slipstream.search.search import Trial
from slipstream.search.settings import SearchSettings
from slipstream.target.target import Target
from slipstream.training.calibration import calibrate_artefact
from slipstream.training.data import encoded
from slipstream.training.data.dialogues import Dialogue
from slipstream.training.data.draft_text import DraftTextSettings, draft_text
from slipstream.training.pipeline import Pipeline, Step
from slipstream.training.run import HeadRun
from slipstream.training.runs import DraftRun, EagleRun, HydraRun, MedusaRun
from slipstream.training.settings import Budget, TargetSettings
from slipstream.training.target import Report as TargetReport
from slipstream.training.target import TargetRun, export

WEIGHTS = ("config.json", "model.safetensors")
Progress = Callable[[str, TargetReport | HeadReport | Trial], None]
"""Called with the name of the step and what it reports."""


def _eagle() -> EagleSettings:
    return EagleSettings(
        steps=1500,
        batch_size=16,
        max_length=384,
        steps_ahead=3,
        learning_rate=2e-3,
        warmup_steps=100,
        precision="bf16",
        held_out=64,
        report_every=50,
    )


def _medusa() -> MedusaSettings:
    return MedusaSettings(
        num_heads=4,
        num_layers=2,
        own_lm_heads=False,
        labels="target",
        steps=800,
        batch_size=16,
        max_length=384,
        learning_rate=1e-2,
        warmup_steps=100,
        precision="bf16",
        held_out=64,
        report_every=50,
    )


def _hydra() -> HydraSettings:
    return HydraSettings(
        num_heads=3,
        num_layers=1,
        prefix_size=128,
        own_lm_heads=False,
        storage="bf16",
        dropout=0.0,
        steps=500,
        batch_size=16,
        max_length=384,
        learning_rate=4e-3,
        warmup_steps=100,
        precision="bf16",
        held_out=64,
        report_every=50,
    )


def _draft() -> DraftSettings:
    return DraftSettings(
        steps=1000,
        batch_size=16,
        max_length=384,
        warmup_steps=100,
        precision="bf16",
        held_out=64,
        report_every=50,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """How the shipped models are made."""

    target: TargetSettings = field(default_factory=TargetSettings)
    text: DraftTextSettings = field(default_factory=DraftTextSettings)
    """What everything after the target learns from."""
    eagle: EagleSettings = field(default_factory=_eagle)
    medusa: MedusaSettings = field(default_factory=_medusa)
    hydra: HydraSettings = field(default_factory=_hydra)
    draft: DraftSettings = field(default_factory=_draft)

    skip_sets: SearchSettings = SETTINGS

    def with_draft_steps(self, steps: int) -> DemoSettings:
        """The same with so many optimizer steps for each drafter."""
        return replace(
            self,
            eagle=replace(self.eagle, steps=steps),
            medusa=replace(self.medusa, steps=steps),
            hydra=replace(self.hydra, steps=steps),
            draft=replace(self.draft, steps=steps),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    """A drafter that is trained on the draft text."""

    name: str
    """Of the step and of the folder."""
    method: str
    """That calibration drafts with."""
    settings: RunSettings
    start: Callable[[Target, Sequence[Dialogue], Path], HeadRun]
    depth: int = 5
    """Of the chains that calibration drafts."""
    files: tuple[str, ...] = WEIGHTS
    """What ships of the run's folder."""


def demo_pipeline(
    data: Path,
    work: Path,
    out: Path,
    budget: Budget,
    settings: DemoSettings,
    *,
    device: str = "cpu",
    compiled: bool = True,
    progress: Progress = lambda step, report: None,
) -> Pipeline:
    """The pipeline that rebuilds the demo models in `out`, with checkpoints and state in `work`.

    data: the folder of the mix, or a packed corpus. budget: of the target.
    """
    place = _Place(data=data, work=work, out=out, device=device, progress=progress)
    trained = (
        _Trained(
            name="eagle",
            method="eagle2",
            settings=settings.eagle,
            start=lambda target, text, folder: EagleRun(target, text, folder, settings.eagle),
        ),
        _Trained(
            name="medusa",
            method="medusa",
            settings=settings.medusa,
            start=lambda target, text, folder: MedusaRun(target, text, folder, settings.medusa),
            depth=settings.medusa.num_heads,
            files=("config.json", "medusa_lm_head.pt"),
        ),
        _Trained(
            name="hydra",
            method="hydra",
            settings=settings.hydra,
            start=lambda target, text, folder: HydraRun(target, text, folder, settings.hydra),
            depth=settings.hydra.num_heads,
        ),
        _Trained(
            name="draft",
            method="draft-model",
            settings=settings.draft,
            start=lambda target, text, folder: DraftRun(target, text, folder, settings.draft),
            files=(*WEIGHTS, "generation_config.json"),
        ),
    )
    steps = [_target_step(place, budget, settings.target, compiled)]
    steps += [_drafter_step(place, settings, one) for one in trained]
    steps.append(_skip_step(place, settings.skip_sets))
    return Pipeline(steps, work / "pipeline.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where the steps read and write, and on what they run."""

    data: Path
    work: Path
    out: Path
    device: str
    progress: Progress

    @property
    def weights(self) -> Path:
        """The exported target, which all later steps read."""
        return self.out / "target" / "model.safetensors"

    def load_target(self) -> Target:
        """The exported target in the dtype that it ships in."""
        from slipstream.target.loading import load_model

        folder = self.out / "target"
        return Target(load_model(folder, dtype="bfloat16", device=self.device, attention=None))


def _target_step(place: _Place, budget: Budget, settings: TargetSettings, compiled: bool) -> Step:
    def train() -> None:
        folder = place.work / "target"
        run = TargetRun(place.data, folder, budget, settings, device=place.device, compiled=compiled)
        run.resume()
        for report in run.steps():
            place.progress("target", report)
        export(folder, place.out / "target")

    return Step(
        name="target",
        run=train,
        inputs={"data": place.data},
        settings={**asdict(settings), **asdict(budget)},
        outputs=(place.weights, place.out / "target" / "tokenizer.json"),
    )


def _skip_step(place: _Place, settings: SearchSettings) -> Step:
    """Skip sets of layer-skip; an interrupted search goes on from its study."""
    folder = place.out / "skip_sets"

    def search() -> None:
        studies = place.work / f"skip-{_key(place.load_target(), asdict(settings))}"
        find_demo_sets(
            place.out / "target",
            studies,
            folder,
            settings=settings,
            progress=lambda task, trial: place.progress(f"skip-sets, {task}", trial),
        )

    return Step(
        name="skip-sets",
        run=search,
        inputs={"target": place.weights},
        settings=asdict(settings),
        outputs=tuple(folder / f"{task}.json" for task in DEMO_TASKS),
    )


def _drafter_step(place: _Place, settings: DemoSettings, trained: _Trained) -> Step:
    """Draft text, training, calibration; the artefact is copied out of the run's folder."""
    folder = place.out / trained.name
    made_with: Mapping[str, object] = {"text": asdict(settings.text), "run": asdict(trained.settings)}

    def train() -> None:
        target = place.load_target()
        corpus = encoded.prepare(place.data, place.work / "target", settings.target.vocab_size, settings.target.context)
        text = draft_text(target, corpus, place.work / "text", settings.text)
        run_folder = place.work / f"{trained.name}-{_key(target, made_with)}"  # another target is another run
        run = trained.start(target, text, run_folder)
        run.resume()
        for report in run.steps():
            place.progress(trained.name, report)
        folder.mkdir(parents=True, exist_ok=True)
        for name in trained.files:
            shutil.copyfile(run_folder / name, folder / name)
        calibrate_artefact(trained.method, target, folder, run.held_out, depth=trained.depth)
        _name_target(folder / "config.json")

    return Step(
        name=trained.name,
        run=train,
        inputs={"data": place.data, "target": place.weights},
        settings=made_with,
        outputs=tuple(folder / name for name in trained.files),
    )


def _name_target(config: Path) -> None:
    """Let the published key for the base model say `demo`, and not where it lay on this machine."""
    record = json.loads(config.read_text(encoding="utf-8"))
    if "base_model_name_or_path" in record:
        record["base_model_name_or_path"] = "demo"
        config.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _key(target: Target, settings: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps([target.hash, settings], sort_keys=True).encode()).hexdigest()[:12]
