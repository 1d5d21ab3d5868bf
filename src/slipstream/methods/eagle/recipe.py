"""Training of an EAGLE head for any target (EAGLE, arXiv 2401.15077, section 3.2 and the released code).

The head learns the target's features and, through its LM head, its distributions. As published: SmoothL1 on features
plus 0.1 x cross-entropy, on answers; uniform noise on the features fed; gradients clipped by value; AdamW with betas
.9 and .95, linear warm-up and decay. The run itself is `run.py`'s; `config.json` and `model.safetensors` in its folder
are the head in the published layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.drafting.recipe import Batch, Dialogue, Optimisation, Paths, Score, StepLosses
from slipstream.drafting.token_loss import LossVocabulary
from slipstream.methods.eagle.checkpoint import load_head, save_head
from slipstream.methods.eagle.head import EagleHead, HeadSizes
from slipstream.methods.eagle.losses import Losses, RolloutLoss
from slipstream.methods.eagle.settings import EagleSettings
from slipstream.target.features import Features
from slipstream.target.target import Target

TOPS = (1, 4, 10)
"""Children of a node for which tau is estimated: a chain, and full trees as wide as EAGLE-1's and EAGLE-2's."""


class EagleRecipe:
    """A `Recipe`: the published losses, and those of several steps ahead (`losses.py`)."""

    features = Features(last_hidden=True)
    identity: Mapping[str, Any] = {}

    def __init__(self, target: Target, dialogues: Sequence[Dialogue], settings: EagleSettings) -> None:
        """dialogues: whose tokens a loss over part of the vocabulary prefers."""
        self.target, self.settings = target, settings
        self.head = _initial_head(target, settings)
        size = settings.loss_vocabulary
        self._vocabulary = None
        if size is not None and size < target.vocab_size:
            self._vocabulary = LossVocabulary(target, dialogues, size)
        self.module: nn.Module = RolloutLoss(self.head, target)
        self.optimisation = Optimisation(betas=(0.9, 0.95), clip_value=settings.clip_value)

    def losses(self, module: nn.Module, batch: Batch) -> StepLosses:
        settings = self.settings
        assert batch.features is not None
        logits = None if self._vocabulary is None else self._vocabulary.drawn(batch.step_answers, batch.seed)
        found: Losses = module(
            batch.ids,
            batch.features,
            batch.answer,
            batch.lengths,
            settings.steps_ahead,
            self._noise(batch),
            logits,
            divisor=batch.divisor,
        )
        each = settings.feature_weight * found.feature + settings.token_weight * found.token  # [steps ahead]
        total = (each * settings.ahead_decay ** torch.arange(settings.steps_ahead, device=each.device)).sum()
        parts = {"feature_loss": found.feature[0], "token_loss": found.token[0]}
        return StepLosses(total, parts, Score(found.num_correct, found.num_rows))

    def _noise(self, batch: Batch) -> Tensor | None:
        """Uniform noise of a step, [n, hidden]."""
        assert batch.features is not None
        if not self.settings.noise:
            return None
        device, width = batch.features.device, batch.features.shape[1]
        parts = []
        for length, seed in zip(batch.lengths, batch.text_seeds, strict=True):
            generator = torch.Generator(device).manual_seed(seed)
            parts.append(torch.rand(length, width, generator=generator, device=device))
        return (torch.cat(parts) * 2 - 1) * self.settings.noise

    def measure(self, module: nn.Module, batch: Batch) -> Score:
        """The head fed with its own features.

        At depth d the first d - 1 drafted tokens are the text's own: the accuracy of a node whose path is right.
        """
        found: Losses = module(
            batch.ids, batch.features, batch.answer, batch.lengths, self.settings.measured_depth, tops=TOPS
        )
        return Score(found.num_correct, found.num_rows, Paths(TOPS, found.num_starts, found.num_paths))

    def save(self, out: Path, steps: int) -> None:
        save_head(self.head, out, self.target, {"steps": steps, **_summary(self.settings)})


def _initial_head(target: Target, settings: EagleSettings) -> EagleHead:
    """In float32, on the target's device."""
    if settings.initial_head is not None:
        return load_head(settings.initial_head, target, torch.float32).requires_grad_(True)
    torch.manual_seed(settings.seed)
    return EagleHead(HeadSizes.like(target, fc_bias=settings.fc_bias)).to(target.device)


def _summary(settings: EagleSettings) -> dict[str, Any]:
    """What of the settings goes into the head's config.json; all of them stand in training.json."""
    names = (
        *("steps_ahead", "learning_rate", "optimizer", "feature_weight", "token_weight", "noise", "clip_value", "seed"),
        *("loss_vocabulary", "initial_head"),
    )
    return {name: getattr(settings, name) for name in names}
