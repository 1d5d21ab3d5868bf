"""How an EAGLE head is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from slipstream.drafting.run_settings import RunSettings
from slipstream.errors import InputError

LEAST_LOSS_VOCABULARY = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class EagleSettings(RunSettings):
    """How a head is trained. Defaults are the paper's where it names them."""

    above_zero: ClassVar[tuple[str, ...]] = (
        *RunSettings.above_zero,
        *("steps_ahead", "measured_depth", "loss_vocabulary"),
    )
    at_least_zero: ClassVar[tuple[str, ...]] = (*RunSettings.at_least_zero, "noise", "clip_value")

    batch_size: int | None = None
    """Dialogues per step on each device, the paper's 4; None: as `tokens_per_step` says."""
    learning_rate: float | None = None
    """Peak; None: 1e-3 * 576 / hidden size of the target, from 3e-5 (the paper's, for 4096 and more) to 1e-3."""
    precision: str = "auto"
    """fp32, or bf16: arithmetic in bfloat16 where it is safe, weights in float32. auto: bf16 for a bfloat16
    target on a GPU or a processor with AMX, where it is faster."""
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
    loss_vocabulary: int | None = None
    """Tokens that stand for a large vocabulary in the cross-entropy, which is an estimate then; None: all."""
    initial_head: str | None = None
    """Folder or hub id of a head for the same target whose weights training starts from; None: fresh ones."""

    def __post_init__(self) -> None:
        RunSettings.__post_init__(self)
        if self.loss_vocabulary is not None and self.loss_vocabulary < LEAST_LOSS_VOCABULARY:
            raise InputError(
                f"loss_vocabulary is {self.loss_vocabulary}; it must be at least {LEAST_LOSS_VOCABULARY}, such as 8192"
            )


def learning_rate_for(hidden_size: int) -> float:
    """The peak rate of a head for a target of this width: small targets want more than the paper's 3e-5.

    1e-3 was found good for widths of 256 and 576, the paper's rate is for 4096 and more; between them a straight line
    in 1 / width.
    """
    return min(1e-3, max(3e-5, 1e-3 * 576 / hidden_size))
