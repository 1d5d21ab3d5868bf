"""What a certificate is asked for in plain values. No torch here: the command's help is made of this."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from slipstream.errors import InputError

LEAST_SAMPLES = 100

_OFF: dict[str, float] = {"typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifyOptions:
    """How much is tested."""

    max_new_tokens: int = 48
    """Tokens at most, per answer."""
    num_seeds: int = 1
    """Seeded answers to each prompt, beside the greedy one."""
    first_seed: int = 1
    """The first seed; others count up."""
    num_samples: int = 300
    """Samples of three tokens, for each verification rule, 100 at least; more find smaller faults; 0 leaves the
    distribution out."""

    def __post_init__(self) -> None:
        for name, least in {"max_new_tokens": 1, "num_seeds": 0, "first_seed": 0, "num_samples": 0}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if 0 < self.num_samples < LEAST_SAMPLES:
            raise InputError(
                f"num_samples (--samples) is {self.num_samples}; give at least {LEAST_SAMPLES}, or 0 to leave the "
                "distribution out"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Warping:
    """Which distribution is sampled; by default the target's own at temperature 1, whatever its config says."""

    temperature: float = 1.0
    """Of the seeded answers and samples; above 0."""
    top_p: float = 1.0
    """Nucleus of this probability; 1: all tokens."""
    top_k: int = 0
    """Among the k most probable tokens; 0: all."""
    min_p: float = 0.0
    """Drop tokens below this fraction of the most probable one; 0: none."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature:g}; a certificate samples at one above 0")

    def settings(self) -> dict[str, float]:
        """For `logits.resolve`: these, and all other truncations off."""
        return {**asdict(self), **_OFF}
