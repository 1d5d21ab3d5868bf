"""The draft heads of Medusa (arXiv 2401.10774, section 2.1).

From the target's feature of token t (its hidden state after the final norm) head i = 0, 1, ... predicts token
t + 2 + i, each on its own: the target's LM head has t + 1. A head is a residual block x + SiLU(W x + b), applied
`num_layers` times, and an LM head: its own, as in the paper, or the target's, with the target's own scaling and
soft-capping. The released code repeats *one* block for num_layers > 1, so its weights exist once.

Shapes: i heads, b batch, n rows, h hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slipstream.core.confidence import ConfidenceScale
from slipstream.drafting.own_lm_heads import lm_head_to_copy
from slipstream.errors import InputError
from slipstream.target.target import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class MedusaSizes:
    """What determines the tensors of the heads."""

    num_heads: int
    hidden_size: int
    """Width of the target's features."""
    num_layers: int = 1
    """How often the residual block of a head is applied."""
    vocab_size: int | None = None
    """Rows of each head's own LM head; None: the target's LM head serves all heads."""

    def __post_init__(self) -> None:
        for name in ("num_heads", "num_layers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} of Medusa heads is {getattr(self, name)}; it must be at least 1")


class MedusaHeads(nn.Module):
    """All heads; tensors of the same part are stacked, so that one product serves all heads."""

    confidence = ConfidenceScale()
    """How sure they may be when the target samples; found by calibration."""

    def __init__(self, sizes: MedusaSizes) -> None:
        """Fresh heads in float32: the blocks pass the feature on unchanged. Own LM heads are zero until set."""
        super().__init__()
        self.sizes = sizes
        h = sizes.hidden_size
        self.weight = nn.Parameter(torch.zeros(sizes.num_heads, h, h))
        self.bias = nn.Parameter(torch.zeros(sizes.num_heads, h))
        self.lm_heads: nn.Parameter | None = None
        if sizes.vocab_size is not None:
            self.lm_heads = nn.Parameter(torch.zeros(sizes.num_heads, sizes.vocab_size, h))

    @classmethod
    def like(cls, target: Target, *, num_heads: int, num_layers: int = 1, own_lm_heads: bool = True) -> MedusaHeads:
        """Fresh heads for a target, on its device: each predicts what the target itself says of the next token.

        Raises InputError where the LM head cannot be copied because it is quantised.
        """
        vocab_size = target.vocab_size if own_lm_heads else None
        sizes = MedusaSizes(
            num_heads=num_heads, hidden_size=target.config.hidden_size, num_layers=num_layers, vocab_size=vocab_size
        )
        heads = cls(sizes).to(target.device)
        if heads.lm_heads is not None:
            weight, _ = lm_head_to_copy(target)
            with torch.no_grad():
                heads.lm_heads.copy_(weight.to(heads.lm_heads).expand_as(heads.lm_heads))
        return heads

    def hidden(self, features: Tensor, num_heads: int | None = None) -> Tensor:
        """What each of the first `num_heads` heads (None: all) hands to its LM head. features: [.., h].

        Returns [i, .., h].
        """
        weight, bias = self.weight[:num_heads], self.bias[:num_heads, None]  # [i, h, h], [i, 1, h]
        rows = features.reshape(-1, features.shape[-1]).expand(weight.shape[0], -1, -1)  # [i, rows, h]
        for _ in range(self.sizes.num_layers):
            rows = rows + nn.functional.silu(torch.baddbmm(bias, rows, weight.transpose(1, 2)))
        return rows.reshape(-1, *features.shape)

    def logits(self, index: int, hidden: Tensor, target: Target) -> Tensor:
        """Logits of one head for rows of its `hidden`. hidden: [n, h]. Returns [n, vocab], float32 or wider."""
        if self.lm_heads is None:
            return target.head(hidden[None].to(target.dtype))[0]
        return target.upcast(hidden @ self.lm_heads[index].T)

    def all_logits(self, feature: Tensor, target: Target, num_heads: int | None = None) -> Tensor:
        """What the first `num_heads` heads (None: all) say after one token, [i, vocab]. feature: [1, h]."""
        hidden = self.hidden(feature, num_heads)  # [i, 1, h]
        if self.lm_heads is None:
            return target.head(hidden.transpose(0, 1))[0]
        return target.upcast(torch.bmm(hidden, self.lm_heads[:num_heads].transpose(1, 2))[:, 0])
