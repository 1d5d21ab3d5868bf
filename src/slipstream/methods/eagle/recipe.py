"""Training of an EAGLE head for any target (EAGLE, arXiv 2401.15077, section 3.2 and the released code).

The head learns the target's features and, through its LM head, its distributions. As published: SmoothL1 on features
plus 0.1 x cross-entropy, on answers; uniform noise on the features fed; gradients clipped by value; AdamW with betas
.9 and .95, linear warm-up and decay. The run itself is `run.py`'s; `config.json` and `model.safetensors` in its folder
are the head in the published layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.drafting.recipe import Batch, Optimisation, Score, StepLosses
from slipstream.methods.eagle.checkpoint import save_head
from slipstream.methods.eagle.head import EagleHead, HeadSizes
from slipstream.methods.eagle.losses import Losses, RolloutLoss
from slipstream.methods.eagle.settings import EagleSettings
from slipstream.target.target import Target


class EagleRecipe:
    """A `Recipe`: the published losses, and those of several steps ahead (`losses.py`)."""

    needs_features = True
    identity: Mapping[str, Any] = {}

    def __init__(self, target: Target, settings: EagleSettings) -> None:
        torch.manual_seed(settings.seed)
        self.target, self.settings = target, settings
        self.head = EagleHead(HeadSizes.like(target, fc_bias=settings.fc_bias)).to(target.device)
        self.module: nn.Module = RolloutLoss(self.head, target)
        self.optimisation = Optimisation(betas=(0.9, 0.95), clip_value=settings.clip_value)

    def losses(self, module: nn.Module, batch: Batch) -> StepLosses:
        settings = self.settings
        assert batch.features is not None
        found: Losses = module(
            batch.ids, batch.features, batch.answer, settings.steps_ahead, self._noise(batch.features, batch.seed)
        )
        each = settings.feature_weight * found.feature + settings.token_weight * found.token  # [steps ahead]
        total = (each * settings.ahead_decay ** torch.arange(settings.steps_ahead, device=each.device)).sum()
        parts = {"feature_loss": found.feature[0], "token_loss": found.token[0]}
        return StepLosses(total, parts, Score(found.num_correct, found.num_rows))

    def _noise(self, features: Tensor, seed: int) -> Tensor:
        """Uniform noise of a step, [b, n, hidden]."""
        generator = torch.Generator(features.device).manual_seed(seed)
        unit = torch.rand(features.shape, generator=generator, device=features.device) * 2 - 1
        return unit * self.settings.noise

    def measure(self, module: nn.Module, batch: Batch) -> Score:
        """The head fed with its own features.

        At depth d the first d - 1 drafted tokens are the text's own: the accuracy of a node whose path is right.
        """
        found: Losses = module(batch.ids, batch.features, batch.answer, self.settings.measured_depth)
        return Score(found.num_correct, found.num_rows)

    def save(self, out: Path, steps: int) -> None:
        save_head(self.head, out, self.target, {"steps": steps, **_summary(self.settings)})


def _summary(settings: EagleSettings) -> dict[str, Any]:
    """What of the settings goes into the head's config.json; all of them stand in training.json."""
    names = ("steps_ahead", "learning_rate", "feature_weight", "token_weight", "noise", "clip_value", "seed")
    return {name: getattr(settings, name) for name in names}
