"""What plain decoding must say, computed the slow way and sharing no code with the engine.

One full-sequence forward per token without a cache and without a mask of ours, transformers' own logits processors and
warpers, and the Gumbel noise of design section 4 from a Philox4x32-10 written out here in NumPy (Salmon et al., SC11).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK32 = 0xFFFFFFFF


def philox4x32(counter: Sequence[np.ndarray | int], key: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Ten Philox rounds on four 32-bit counter words (uint64 arrays of one shape, or ints) under two key words."""
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(word, dtype=np.uint64) for word in counter))
    mask, shift = np.uint64(_MASK32), np.uint64(32)
    for turn in range(10):
        k0, k1 = (np.uint64((word + turn * weyl) & _MASK32) for word, weyl in zip(key, _WEYL, strict=True))
        left, right = c0 * np.uint64(_MULTIPLIERS[0]), c2 * np.uint64(_MULTIPLIERS[1])
        c0, c1, c2, c3 = (right >> shift) ^ c1 ^ k0, right & mask, (left >> shift) ^ c3 ^ k1, left & mask
    return c0, c1, c2, c3


def gumbel_row(seed: int, stream: int, position: int, vocab_size: int) -> np.ndarray:
    """Gumbel noise of every token at one absolute position, [vocab] float64."""
    pairs = np.arange((vocab_size + 1) // 2, dtype=np.uint64)
    counter = (pairs, position & _MASK32, position >> 32, stream)
    w0, w1, w2, w3 = philox4x32(counter, (seed & _MASK32, seed >> 32))
    even, odd = (w0 << np.uint64(32)) | w1, (w2 << np.uint64(32)) | w3
    bits53 = (np.stack([even, odd], axis=1).reshape(-1)[:vocab_size] >> np.uint64(11)).astype(np.float64)
    uniform = np.maximum(bits53, 0.5) * 2.0**-53  # strictly inside (0, 1)
    return -np.log(-np.log(uniform))


def warpers(temperature: float, top_k: int, top_p: float, min_p: float) -> LogitsProcessorList:
    """Transformers' own warpers, in the order its `generate` applies them."""
    chain: list[LogitsProcessor] = []
    if temperature != 1.0:
        chain.append(TemperatureLogitsWarper(temperature))
    if top_k > 0:
        chain.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        chain.append(TopPLogitsWarper(top_p))
    if min_p > 0.0:
        chain.append(MinPLogitsWarper(min_p))
    return LogitsProcessorList(chain)


@torch.no_grad()
def next_logits(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """Logits after `ids` from one forward over all of them, [1, vocab] float64."""
    sequence = torch.tensor([list(ids)], device=model.device)
    return model(sequence, use_cache=False).logits[:, -1].double()


def oracle_generate(
    model: PreTrainedModel,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    stream: int = 0,
    eos_token_ids: Iterable[int] = (),
    repetition_penalty: float = 1.0,
    processors: Sequence[LogitsProcessor] = (),
    context_length: int | None = None,
) -> list[int]:
    """The token ids of plain decoding: greedy at temperature 0, else the Gumbel-max sample of (seed, stream).

    `processors` run after the repetition penalty and before the warpers, each on the whole sequence so far. The EOS
    token, where one is met, is the last id returned.
    """
    stop, ids = set(eos_token_ids), list(prompt_ids)
    penalties = list(processors)
    if repetition_penalty != 1.0:
        penalties.insert(0, RepetitionPenaltyLogitsProcessor(repetition_penalty))
    warp = warpers(temperature, top_k, top_p, min_p) if temperature > 0 else LogitsProcessorList()
    limit = len(ids) + max_new_tokens if context_length is None else min(len(ids) + max_new_tokens, context_length)
    while len(ids) < limit:
        seen = torch.tensor([ids], device=model.device)
        scores = warp(seen, LogitsProcessorList(penalties)(seen, next_logits(model, ids)))[0].cpu()
        if temperature > 0:
            scores = scores.log_softmax(-1) + torch.from_numpy(gumbel_row(seed, stream, len(ids), len(scores)))
        ids.append(int(scores.argmax()))
        if ids[-1] in stop:
            break
    return ids[len(prompt_ids) :]
