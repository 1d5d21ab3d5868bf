"""How Medusa heads are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from slipstream.drafting.run_settings import RunSettings
from slipstream.errors import unknown_choice

LABELS = ("text", "target")


@dataclass(frozen=True, slots=True, kw_only=True)
class MedusaSettings(RunSettings):
    """How the heads are trained. Defaults are those of Medusa-1 where the paper or its released recipe names them."""

    above_zero: ClassVar[tuple[str, ...]] = (*RunSettings.above_zero, "num_heads", "num_layers", "head_decay")

    epochs: float = 2.0
    """Passes over the data."""
    learning_rate: float = 2e-3
    """Peak; it falls to zero along a cosine."""
    warmup_steps: int = 40
    """Steps in which the rate rises; at most a tenth of the run."""
    num_heads: int = 5
    """Heads, and so the deepest draft tree."""
    num_layers: int = 1
    """How often the residual block of a head is applied."""
    own_lm_heads: bool = True
    """Whether each head has an LM head of its own, as published, or the target's serves all."""
    labels: str = "text"
    """text: the tokens that stand there, as published; target: the target's own distributions (distillation)."""
    head_decay: float = 0.8
    """Weight of each further head's loss relative to the one before."""

    def __post_init__(self) -> None:
        RunSettings.__post_init__(self)
        if self.labels not in LABELS:
            raise unknown_choice("labels", self.labels, LABELS)
