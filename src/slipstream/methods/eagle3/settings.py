"""How an EAGLE-3 head is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from slipstream.drafting.run_settings import RunSettings
from slipstream.errors import InputError, unknown_choice

STORAGE = ("fp32", "bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Eagle3Settings(RunSettings):
    """How a head is trained. Defaults are those of the released code where it names them."""

    above_zero: ClassVar[tuple[str, ...]] = (
        *RunSettings.above_zero,
        *("steps_ahead", "measured_depth", "draft_vocabulary", "clip_norm"),
    )
    at_least_zero: ClassVar[tuple[str, ...]] = (*RunSettings.at_least_zero, "ahead_decay")

    batch_size: int | None = None
    """Dialogues per step on each device; None: as `tokens_per_step` says."""
    learning_rate: float | None = None
    """Peak; None: 1e-3 * 576 / hidden size of the target, from 3e-5 to 1e-3; that is 1.4e-4 for 4096."""
    precision: str = "auto"
    """fp32, or bf16: arithmetic in bfloat16 where it is safe, weights in float32. auto: bf16 for a bfloat16
    target on a GPU or a processor with AMX, where it is faster."""
    steps_ahead: int = 7
    """Steps of the training-time test: how deep the head is trained on its own output."""
    ahead_decay: float = 0.8
    """Weight of each further step's loss relative to the one before."""
    clip_norm: float = 0.5
    """Gradients are scaled down to this norm, all together."""
    draft_vocabulary: int = 32000
    """Tokens that the head drafts from: the most frequent ones of the answers, so many at most."""
    layers: tuple[int, ...] = ()
    """Layers whose inputs are read, counted from 0, low to high; none: the third, the middle and the third last."""
    fc_norm: bool = False
    """As EAGLE-3.1: each hidden state is normalised before they are fused, and the output after it before it is fed
    back."""
    measured_depth: int = 5
    """Steps ahead measured on held-out dialogues."""
    storage: str = "fp32"
    """Numbers of the saved head: fp32 or bf16. Training itself keeps float32 weights."""
    initial_head: str | None = None
    """Folder or hub id of a head for the same target whose weights, vocabulary and layers training starts from; None:
    fresh ones."""

    def __post_init__(self) -> None:
        RunSettings.__post_init__(self)
        if self.storage not in STORAGE:
            raise unknown_choice("storage", self.storage, STORAGE)
        if self.initial_head is not None and (self.layers or self.fc_norm):
            raise InputError("layers and fc_norm are those of initial_head; leave them out")
