"""What every training run has settings for, whatever it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from slipstream.errors import InputError, unknown_choice

PRECISIONS = {"fp32": "no", "bf16": "bf16"}
"""Our names and those of accelerate."""
OPTIMIZERS = ("adamw", "muon")
AUTO = "auto"
"""The precision that suits target and device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """Length, data, precision and measurements of a run. A method's own settings subclass it and may change defaults.

    The limits of numbers stand in two tuples of field names, which a subclass extends.
    """

    above_zero: ClassVar[tuple[str, ...]] = ("epochs", "batch_size", "tokens_per_step", "max_length", "report_every")
    at_least_zero: ClassVar[tuple[str, ...]] = ("learning_rate", "warmup_steps", "held_out", "cache_gib")

    epochs: float = 20.0
    """Passes over the data."""
    steps: int | None = None
    """Optimizer steps, instead of `epochs`."""
    batch_size: int | None = 4
    """Dialogues per step, of all processes together; None: as `tokens_per_step` says."""
    tokens_per_step: int = 2048
    """Tokens per step, of all processes together, where there is no `batch_size`; a longer dialogue is a step of its
    own."""
    max_length: int = 2048
    """Tokens of a dialogue; longer ones are cut."""
    learning_rate: float | None = 1e-3
    """Peak; None, where a method allows it: by the target's width."""
    optimizer: str = "adamw"
    """adamw, as published, or muon, which makes updates of matrices orthogonal: fewer tokens bring the same, at three
    times AdamW's rate."""
    warmup_steps: int = 2000
    """Steps in which the rate rises; at most a tenth of the run."""
    precision: str = "fp32"
    """fp32, or bf16: arithmetic in bfloat16 where it is safe, weights in float32. auto: bf16 for a bfloat16
    target on a GPU or a processor with AMX, where it is faster."""
    held_out: int = 16
    """Dialogues kept back to measure accuracy by depth; at most a tenth of them."""
    report_every: int = 100
    """Steps between measurements on held-out dialogues, and between checkpoints."""
    cache_gib: float = 0.0
    """Size limit of features kept on disk; 0: compute them anew in every pass."""
    seed: int = 0
    """Of weights, order and noise."""

    def __post_init__(self) -> None:
        for name in self.above_zero:
            if (value := getattr(self, name)) is not None and value <= 0:
                raise InputError(f"{name} is {value}; it must be above 0")
        for name in self.at_least_zero:
            if (value := getattr(self, name)) is not None and value < 0:
                raise InputError(f"{name} is {value}; it must be at least 0")
        if self.steps is not None and self.steps < 1:
            raise InputError(f"steps is {self.steps}; it must be at least 1")
        if self.optimizer not in OPTIMIZERS:
            raise unknown_choice("optimizer", self.optimizer, OPTIMIZERS)
        if self.precision not in (*PRECISIONS, AUTO):
            raise unknown_choice("precision", self.precision, (*PRECISIONS, AUTO))
