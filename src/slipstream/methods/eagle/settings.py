"""How an EAGLE head is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from slipstream.drafting.run_settings import RunSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class EagleSettings(RunSettings):
    """How a head is trained. Defaults are the paper's where it names them."""

    above_zero: ClassVar[tuple[str, ...]] = (*RunSettings.above_zero, "steps_ahead", "measured_depth")
    at_least_zero: ClassVar[tuple[str, ...]] = (*RunSettings.at_least_zero, "noise", "clip_value")

    learning_rate: float = 3e-5
    """Peak. Heads of small targets want more: 1e-3 suits a hidden size of 256."""
    clip_value: float = 0.5
    """Gradients are clipped to this absolute value, element by element."""
    noise: float = 0.1
    """Features fed get uniform noise from -noise to noise."""
    feature_weight: float = 1.0
    """Weight of the regression loss."""
    token_weight: float = 0.1
    """Weight of the cross-entropy."""
    steps_ahead: int = 1
    """1: as the paper. More: the head is also trained on features of its own making, so many steps deep."""
    ahead_decay: float = 0.8
    """Weight of each further step's loss relative to the one before."""
    fc_bias: bool = True
    """Whether the input projection has a bias, as the first published heads have."""
    measured_depth: int = 5
    """Steps ahead measured on held-out dialogues."""
