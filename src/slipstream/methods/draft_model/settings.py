"""How a draft model is made and trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from slipstream.drafting.run_settings import RunSettings
from slipstream.errors import InputError, unknown_choice

EMBEDDINGS = ("projected", "random")


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftSettings(RunSettings):
    """Sizes of the small Llama, its loss, and the run. It has the target's vocabulary; its embeddings are tied."""

    above_zero: ClassVar[tuple[str, ...]] = (
        *RunSettings.above_zero,
        *("hidden_size", "num_layers", "num_heads", "num_kv_heads", "intermediate_size"),
    )
    at_least_zero: ClassVar[tuple[str, ...]] = (*RunSettings.at_least_zero, "prompt_weight")

    hidden_size: int = 192
    """Width of the residual stream."""
    num_layers: int = 2
    """Decoder layers. Drafting is sequential: few wide layers draft faster than many narrow ones."""
    num_heads: int = 4
    """Query heads."""
    num_kv_heads: int = 2
    """Key and value heads."""
    intermediate_size: int = 512
    """Width of the MLP."""
    embeddings: str = "projected"
    """projected: start from the target's embeddings in their principal directions; random."""
    prompt_weight: float = 0.5
    """Weight of what users wrote; answers weigh 1. A head reads the target's features, a draft model has to read."""
    epochs: float = 10.0
    """Passes over the data."""
    batch_size: int = 8
    """Dialogues per step on each device."""
    learning_rate: float = 3e-3
    """Peak."""
    warmup_steps: int = 200
    """Steps in which the rate rises; at most a tenth of the run."""

    def __post_init__(self) -> None:
        RunSettings.__post_init__(self)
        if self.embeddings not in EMBEDDINGS:
            raise unknown_choice("embeddings", self.embeddings, EMBEDDINGS)
        if self.hidden_size % (2 * self.num_heads) or self.num_heads % self.num_kv_heads:
            raise InputError(
                f"hidden_size {self.hidden_size} must be a multiple of twice num_heads {self.num_heads}, and num_heads "
                f"a multiple of num_kv_heads {self.num_kv_heads}"
            )
