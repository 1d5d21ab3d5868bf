"""Which prompts of a corpus the target answers, and how."""

from __future__ import annotations

from dataclasses import dataclass

from slipstream.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSettings:
    """Which prompts are answered, and how."""

    per_file: int | None = None
    """Prompts of each file at most, drawn by the seed; None: all."""
    max_prompt_tokens: int = 1024
    """Longer prompts are left out."""
    max_new_tokens: int = 256
    """Tokens of an answer at most."""
    temperatures: tuple[float, ...] = (0.0, 1.0)
    """Prompts take turns with these; 0: greedy, else sampled from the whole distribution."""
    batch_size: int = 64
    """Answers written at once."""
    block: int = 512
    """Answers after which the file is written to."""
    part: tuple[int, int] = (1, 1)
    """(k, n): of n processes that share the work this is the k-th; each writes a file of its own."""
    seed: int = 0
    """Of the choice and order of prompts, and of sampled answers."""

    def __post_init__(self) -> None:
        for name in ("max_prompt_tokens", "max_new_tokens", "batch_size", "block"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.per_file is not None and self.per_file < 1:
            raise InputError(f"per_file is {self.per_file}; it must be at least 1")
        if not self.temperatures or min(self.temperatures) < 0:
            raise InputError(f"temperatures are {self.temperatures}; give one or several, each at least 0")
        if not 1 <= self.part[0] <= self.part[1]:
            raise InputError(
                f"part is {self.part[0]}/{self.part[1]}; it must lie between 1/{self.part[1]} and all of them"
            )
