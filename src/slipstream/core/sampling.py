"""Randomness of decoding, made reproducible: Gumbel noise keyed by (seed, stream, position, token).

Gumbel-max: argmax over x of log p(x) + g(x), with g independent standard Gumbel noise, is an exact sample of p.
Here the noise of a text position is a fixed function of the seed, so "the sample at position t" is one token, whoever
asks for it and however often: plain decoding and the verification of a draft tree give the same text.

The generator is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): counter-based, so
any row is computed alone, and made of integer operations, so every device draws the same bits.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.errors import InputError, unknown_choice

VERIFICATIONS = ("coupled", "rejection")

_MASK32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_BLOCK, _BLOCK_ON_CPU = 16, 4
"""Rows of noise at once. On a CPU each is made alone, and those beyond a text's end for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How a distribution is sampled. What the distribution is, is said by `logits.ProcessingSettings`."""

    seed: int = 0
    """Key of the noise, 0 to 2**64 - 1."""
    stream: int = 0
    """Separates several samples of one prompt under one seed, 0 to 2**32 - 1."""
    verification: str = "coupled"
    """`coupled`: token-identical to plain sampling with the same seed; `rejection`: the published rules."""

    def __post_init__(self) -> None:
        for name, bits in (("seed", 64), ("stream", 32)):
            value = getattr(self, name)
            if not isinstance(value, int) or not 0 <= value < 2**bits:
                raise InputError(f"{name} is {value!r}; it must be a whole number from 0 to 2**{bits} - 1")
        if self.verification not in VERIFICATIONS:
            raise unknown_choice("verification", self.verification, VERIFICATIONS)


def draw_seed() -> int:
    """A fresh seed for a caller who gave none; small enough to read aloud, and reported with the output."""
    return secrets.randbits(32)


def philox(
    counter: Sequence[Tensor | int], key: tuple[Tensor | int, Tensor | int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 on broadcastable int64 words (each below 2**32); returns four words of the same kind."""
    c0, c1, c2, c3 = (torch.as_tensor(word) for word in counter)
    k0, k1 = key
    for _ in range(_ROUNDS):
        # An int64 product wraps modulo 2**64, which is all that both halves need. Its low half is cut to 32 bits where
        # it is next read, after it was mixed in.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((product1 >> 32) ^ c1).bitwise_xor_(k0).bitwise_and_(_MASK32)
        c2 = ((product0 >> 32) ^ c3).bitwise_xor_(k1).bitwise_and_(_MASK32)
        c1, c3 = product1, product0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK32, (k1 + _KEY_STEPS[1]) & _MASK32
    return c0, c1 & _MASK32, c2, c3 & _MASK32


def gumbel_rows(seed: int | Tensor, stream: int, positions: Tensor, vocab_size: int) -> Tensor:
    """Rows of standard Gumbel noise for absolute text positions.

    positions: [p] int64. seed: one for all rows, or a column of them, [p, 1] int64. Returns [p, vocab_size] float64 on
    the same device. One counter yields the noise of two neighbouring tokens.
    """
    pair = torch.arange((vocab_size + 1) // 2, device=positions.device)[None, :]  # [1, pairs]
    position = positions[:, None]  # [p, 1]
    words = philox(
        (pair, position & _MASK32, position >> 32, torch.full_like(position, stream)),
        (seed & _MASK32, (seed >> 32) & _MASK32),
    )
    even, odd = ((words[0] << 21) | (words[1] >> 11), (words[2] << 21) | (words[3] >> 11))
    bits = torch.stack((even, odd), dim=-1).flatten(1)[:, :vocab_size]  # [p, vocab]
    return gumbel_from_bits(bits)


def gumbel_from_bits(bits: Tensor) -> Tensor:
    """Gumbel noise of 53-bit integers (int64): -log(-log(u)) in float64, u = bits / 2**53 strictly inside (0, 1)."""
    uniform = bits.double().clamp_(min=0.5).mul_(2.0**-53)  # a draw of 0 becomes half a step, so log stays finite
    return uniform.log_().neg_().log_().neg_()


NoiseRows = Callable[[int, int, Tensor, int], Tensor]
"""`gumbel_rows` for one seed, or what yields the same bits."""


class GumbelNoise:
    """The noise rows of one generation, computed in blocks and kept while positions near them are in use."""

    def __init__(
        self,
        seed: int,
        stream: int,
        vocab_size: int,
        device: torch.device,
        block: int | None = None,
        make: NoiseRows = gumbel_rows,
    ) -> None:
        """block: rows computed at least at once; None: as suits the device. make: computes them."""
        self._seed, self._stream, self._vocab_size = seed, stream, vocab_size
        self._device, self._make = device, make
        self._block = block or (_BLOCK_ON_CPU if device.type == "cpu" else _BLOCK)
        self._first = 0
        self._rows = torch.empty(0, vocab_size, dtype=torch.float64, device=device)

    def rows(self, first: int, count: int) -> Tensor:
        """Noise of positions first .. first + count - 1: [count, vocab] float64. Earlier positions are forgotten."""
        drop = first - self._first
        if drop < 0 or drop > self._rows.shape[0]:
            self._first, self._rows = first, self._rows[:0]
        elif first + count > self._first + self._rows.shape[0]:
            self._first, self._rows = first, self._rows[drop:]
        end = self._first + self._rows.shape[0]
        if first + count > end:
            new_end = max(first + count, end + self._block)
            positions = torch.arange(end, new_end, device=self._device)
            # On a CPU row by row, so that what is worked on stays in its cache.
            parts = torch.split(positions, 1) if self._device.type == "cpu" else (positions,)
            fresh = [self._make(self._seed, self._stream, part, self._vocab_size) for part in parts]
            self._rows = torch.cat((self._rows, *fresh))
        start = first - self._first
        return self._rows[start : start + count]
