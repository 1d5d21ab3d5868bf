"""What a run of the demo target is made of: sizes, batches, the schedule, and the budget that ends it."""

from __future__ import annotations

from dataclasses import dataclass

from slipstream.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSettings:
    """What defines a run: two runs of equal settings, data and budget give the same weights on the same machine."""

    vocab_size: int = 4096
    """Entries of the tokenizer, special tokens included."""
    hidden_size: int = 256
    """Width of the residual stream."""
    num_layers: int = 14
    """Decoder layers."""
    num_heads: int = 4
    """Query heads."""
    num_kv_heads: int = 2
    """Key and value heads."""
    intermediate_size: int = 640
    """Width of the MLP."""
    context: int = 4096
    """Largest number of positions."""
    tokens_per_step: int = 8192
    """Tokens per optimizer step."""
    tokens_per_pass: int = 4096
    """Tokens per forward and backward pass; gradients of the passes of a step are summed."""
    row_lengths: tuple[tuple[float, int], ...] = ((0.3, 256), (0.65, 512), (0.85, 1024), (1.0, 2048))
    """(share of the budget up to which it holds, row length in tokens)."""
    final_share: float = 0.65
    """Share of the budget, at its end, in which the final mix is read and the learning rate falls to zero."""
    warmup_steps: int = 100
    """Steps in which the learning rate rises linearly."""
    learning_rate: float = 3e-3
    """Peak learning rate of both optimizers (Muon's update is scaled to AdamW's size)."""
    weight_decay: float = 0.05
    """Decoupled weight decay of the matrices inside the layers."""
    prompt_weight: float = 0.5
    """Weight of the loss on tokens the user wrote; all others weigh 1."""
    seed: int = 0
    """Seed of the initial weights and of the order of the documents."""

    def __post_init__(self) -> None:
        if self.tokens_per_step % self.tokens_per_pass:
            raise InputError(
                f"tokens_per_step {self.tokens_per_step} is not a multiple of tokens_per_pass {self.tokens_per_pass}."
            )
        for _, length in self.row_lengths:
            if self.tokens_per_pass % length or length > self.context:
                raise InputError(
                    f"Row length {length} must divide tokens_per_pass {self.tokens_per_pass} "
                    f"and fit the context of {self.context}."
                )

    def row_length(self, progress: float) -> int:
        """Row length in tokens at a share of the budget, 0..1."""
        return next((length for end, length in self.row_lengths if progress < end), self.row_lengths[-1][1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """When training ends: after `hours` of training or after `steps`, exactly one of them."""

    hours: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.hours is None) == (self.steps is None):
            raise InputError("Give a budget: either --hours or --steps.")

    def progress(self, elapsed_s: float, step: int) -> float:
        """Share of the budget that is used up, 0..1."""
        if self.steps is not None:
            return min(1.0, step / max(1, self.steps))
        return min(1.0, elapsed_s / max(1e-9, 3600 * (self.hours or 0.0)))


def learning_rate(settings: TargetSettings, step: int, progress: float) -> float:
    """Warmup, constant, then linear to zero over the final share of the budget."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    fall = min(1.0, (1 - progress) / settings.final_share) if settings.final_share > 0 else 1.0
    return settings.learning_rate * warm * fall
