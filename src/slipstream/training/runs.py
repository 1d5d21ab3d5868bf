"""A training run for each kind of drafter: the method's recipe, in the run that all share (`run.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slipstream.methods.draft_model.recipe import DraftRecipe
from slipstream.methods.draft_model.settings import DraftSettings
from slipstream.methods.eagle.head import EagleHead
from slipstream.methods.eagle.recipe import EagleRecipe
from slipstream.methods.eagle.settings import EagleSettings, learning_rate_for
from slipstream.methods.eagle3.head import Eagle3Head
from slipstream.methods.eagle3.recipe import Eagle3Recipe
from slipstream.methods.eagle3.settings import Eagle3Settings
from slipstream.methods.hydra.head import HydraHeads
from slipstream.methods.hydra.recipe import HydraRecipe
from slipstream.methods.hydra.settings import HydraSettings
from slipstream.methods.medusa.head import MedusaHeads
from slipstream.methods.medusa.recipe import MedusaRecipe
from slipstream.methods.medusa.settings import MedusaSettings
from slipstream.target.target import Target
from slipstream.training.data.dialogues import Dialogue
from slipstream.training.run import HeadRun


def train_draft(
    target: Target,
    dialogues: Sequence[Dialogue],
    out: Path,
    settings: DraftSettings | None = None,
    tokenizer: Any = None,
) -> Target:
    """Train a draft model and save it in `out`; a run that was interrupted there is continued.

    tokenizer: the target's, saved with the model; by default that of the folder the target was loaded from. Returns
    the model on the target's device, in its dtype. Raises InputError for unusable data or settings that differ from
    those of the run in `out`.
    """
    run = DraftRun(target, dialogues, out, settings, tokenizer)
    run.finish()
    return Target(run.model.requires_grad_(False).to(target.dtype))


class DraftRun(HeadRun):
    """One training run of a draft model in a folder."""

    def __init__(
        self,
        target: Target,
        dialogues: Sequence[Dialogue],
        out: Path,
        settings: DraftSettings | None = None,
        tokenizer: Any = None,
    ) -> None:
        settings = settings or DraftSettings()
        recipe = DraftRecipe(target, settings, tokenizer)
        self.model: Any = recipe.model
        super().__init__(target, dialogues, out, settings, recipe)


def train_eagle(
    target: Target, dialogues: Sequence[Dialogue], out: Path, settings: EagleSettings | None = None
) -> EagleHead:
    """Train a head and save it in `out`; a run that was interrupted there is continued.

    Returns the head on the target's device and in its dtype. Raises InputError for unusable data or settings that
    differ from those of the run in `out`.
    """
    run = EagleRun(target, dialogues, out, settings)
    run.finish()
    return run.head.place(target.device, target.dtype).requires_grad_(False).eval()


class EagleRun(HeadRun):
    """One training run of a head in a folder."""

    def __init__(
        self, target: Target, dialogues: Sequence[Dialogue], out: Path, settings: EagleSettings | None = None
    ) -> None:
        settings = settings or EagleSettings()
        if settings.learning_rate is None:
            settings = replace(settings, learning_rate=learning_rate_for(int(target.config.hidden_size)))
        recipe = EagleRecipe(target, dialogues, settings)
        self.head = recipe.head
        super().__init__(target, dialogues, out, settings, recipe)


def train_eagle3(
    target: Target, dialogues: Sequence[Dialogue], out: Path, settings: Eagle3Settings | None = None
) -> Eagle3Head:
    """Train a head and save it in `out`; a run that was interrupted there is continued.

    Returns the head on the target's device and in its dtype. Raises InputError for unusable data or settings that
    differ from those of the run in `out`.
    """
    run = Eagle3Run(target, dialogues, out, settings)
    run.finish()
    return run.head.place(target.device, target.dtype).requires_grad_(False).eval()


class Eagle3Run(HeadRun):
    """One training run of a head in a folder."""

    def __init__(
        self, target: Target, dialogues: Sequence[Dialogue], out: Path, settings: Eagle3Settings | None = None
    ) -> None:
        settings = settings or Eagle3Settings()
        if settings.learning_rate is None:
            settings = replace(settings, learning_rate=learning_rate_for(int(target.config.hidden_size)))
        recipe = Eagle3Recipe(target, dialogues, settings)
        self.head = recipe.head
        super().__init__(target, dialogues, out, settings, recipe)


def train_hydra(
    target: Target, dialogues: Sequence[Dialogue], out: Path, settings: HydraSettings | None = None
) -> HydraHeads:
    """Train heads and save them in `out`; a run that was interrupted there is continued.

    Returns the heads on the target's device and in its dtype. Raises InputError for unusable data or settings that
    differ from those of the run in `out`.
    """
    run = HydraRun(target, dialogues, out, settings)
    run.finish()
    return run.heads.place(target.device, target.dtype).requires_grad_(False).eval()


class HydraRun(HeadRun):
    """One training run of a set of heads in a folder."""

    def __init__(
        self, target: Target, dialogues: Sequence[Dialogue], out: Path, settings: HydraSettings | None = None
    ) -> None:
        settings = settings or HydraSettings()
        recipe = HydraRecipe(target, settings)
        self.heads = recipe.heads
        super().__init__(target, dialogues, out, settings, recipe)


def train_medusa(
    target: Target, dialogues: Sequence[Dialogue], out: Path, settings: MedusaSettings | None = None
) -> MedusaHeads:
    """Train heads and save them in `out`; a run that was interrupted there is continued.

    Returns the heads on the target's device and in its dtype. Raises InputError for unusable data or settings that
    differ from those of the run in `out`.
    """
    run = MedusaRun(target, dialogues, out, settings)
    run.finish()
    return run.heads.to(target.device, target.dtype).requires_grad_(False).eval()


class MedusaRun(HeadRun):
    """One training run of a set of heads in a folder."""

    def __init__(
        self, target: Target, dialogues: Sequence[Dialogue], out: Path, settings: MedusaSettings | None = None
    ) -> None:
        settings = settings or MedusaSettings()
        recipe = MedusaRecipe(target, settings)
        self.heads = recipe.heads
        super().__init__(target, dialogues, out, settings, recipe)
