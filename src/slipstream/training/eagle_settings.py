"""How an EAGLE head is trained."""

from __future__ import annotations

from dataclasses import dataclass

from slipstream.errors import InputError, unknown_choice

PRECISIONS = {"fp32": "no", "bf16": "bf16"}
"""Our names and those of accelerate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EagleSettings:
    """How a head is trained. Defaults are the paper's where it names them."""

    epochs: float = 20.0
    """Passes over the data."""
    steps: int | None = None
    """Optimizer steps, instead of epochs."""
    batch_size: int = 4
    """Dialogues per step on each device."""
    max_length: int = 2048
    """Tokens of a dialogue; longer ones are cut."""
    learning_rate: float = 3e-5
    """Peak. Heads of small targets want more: 1e-3 suits a hidden size of 256."""
    warmup_steps: int = 2000
    """Steps in which the rate rises; at most a tenth of the run. Then it falls linearly to zero."""
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
    precision: str = "fp32"
    """fp32, or bf16: arithmetic in bfloat16 where it is safe, weights in float32."""
    fc_bias: bool = True
    """Whether the input projection has a bias, as the first published heads have."""
    held_out: int = 16
    """Dialogues kept back to measure accuracy by depth; at most a tenth of them."""
    report_every: int = 100
    """Steps between measurements on them, and between checkpoints."""
    measured_depth: int = 5
    """Steps ahead measured there."""
    cache_gib: float = 0.0
    """Size limit of features kept on disk; 0: compute them anew in every pass."""
    seed: int = 0
    """Of weights, order and noise."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "max_length", "steps_ahead", "report_every", "measured_depth"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("learning_rate", "warmup_steps", "noise", "clip_value", "held_out", "cache_gib"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if self.steps is not None and self.steps < 1:
            raise InputError(f"steps is {self.steps}; it must be at least 1")
        if self.precision not in PRECISIONS:
            raise unknown_choice("precision", self.precision, PRECISIONS)
