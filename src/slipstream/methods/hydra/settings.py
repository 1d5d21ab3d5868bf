"""How Hydra heads are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from slipstream.drafting.run_settings import RunSettings
from slipstream.errors import InputError, unknown_choice

STORAGE = ("fp32", "bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class HydraSettings(RunSettings):
    """How a set of heads is trained. Defaults are those of Hydra++, as the released code's README has them."""

    above_zero: ClassVar[tuple[str, ...]] = (*RunSettings.above_zero, "num_heads", "num_layers")
    at_least_zero: ClassVar[tuple[str, ...]] = (*RunSettings.at_least_zero, "dropout", "weight_decay")

    epochs: float = 10.0
    """Passes over the data."""
    batch_size: int = 4
    """Dialogues per step on each device; the published heads had 4 on each of 8."""
    learning_rate: float = 5e-4
    """Peak; it falls to a third along a cosine."""
    warmup_steps: int = 100
    """Steps in which the rate rises; at most a tenth of the run."""
    num_heads: int = 4
    """Heads, which is how deep a tree can be drafted."""
    num_layers: int = 4
    """Residual blocks of a head; Hydra has 1."""
    prefix: bool = True
    """Whether a decoder layer over the text's features stands before the heads (Hydra++); false: Hydra."""
    prefix_size: int | None = None
    """Width of that layer's MLP; None: that of the target's own. The released loader takes only the target's."""
    own_lm_heads: bool = True
    """Whether every head learns an LM head of its own; false: the target's serves all, and is not stored."""
    dropout: float = 0.2
    """While training, before every block and LM head."""
    weight_decay: float = 0.1
    """Of AdamW."""
    storage: str = "fp32"
    """Numbers of the saved heads: fp32 or bf16. Training itself keeps float32 weights."""

    def __post_init__(self) -> None:
        RunSettings.__post_init__(self)
        if self.prefix_size is not None and (self.prefix_size < 1 or not self.prefix):
            raise InputError(f"prefix_size is {self.prefix_size}; it must be above 0, and needs the prefix layer")
        if self.dropout >= 1:
            raise InputError(f"dropout is {self.dropout}; it must be below 1")
        if self.storage not in STORAGE:
            raise unknown_choice("storage", self.storage, STORAGE)
