"""The probe: whether a target computes draft trees as it would compute each of their paths alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from slipstream.core.tree import ancestor_mask
from slipstream.errors import UnsupportedTargetError, first_line
from slipstream.target.families import RUNNING_ERRORS, cannot_run
from slipstream.target.target import Target
from slipstream.target.windows import windows

Result = TypeVar("Result")

# Largest deviation of a tree's logits from per-path decoding that rounding explains, in standard deviations of the
# logits: several times what was seen on working models, far below what a leak or a shifted position makes. (Float64
# models of some families compute their softmax or router in float32.)
_LIMITS = {torch.float64: 1e-5, torch.float32: 2e-3, torch.float16: 0.1, torch.bfloat16: 0.5}


@torch.inference_mode()
def probe(target: Target, attempts: int = 3) -> None:
    """Refuse a model that computes trees wrongly (UnsupportedTargetError).

    A 5-node tree, and one token after committing a branch of it, must give the logits of per-path decoding. A
    fault is systematic; a mixture of experts in low precision may route a near-tie differently, so the smallest
    deviation over a few attempts decides. A model with windows is tried with windows shorter than the text.
    """
    _check_text_alone(target)
    short = _run(target, target.with_short_windows)
    probed = short or target
    limit = _LIMITS.get(target.dtype, _LIMITS[torch.bfloat16])
    deviation = float("inf")
    for attempt in range(attempts):
        deviation = min(deviation, _run(target, partial(_deviation, probed, attempt)))
        if deviation <= limit:
            return
    reason = (
        _ignored_windows(target, short)
        or _rows_depend(target, limit)
        or f"logits deviate from plain decoding by {deviation:.2g} standard deviations (limit {limit:g}); its "
        "attention does not follow the given mask, positions or cache"
    )
    raise UnsupportedTargetError(f"{target.name} computes draft trees wrongly: {reason}")


def _check_text_alone(target: Target) -> None:
    """Refuse a model that does not run on token ids alone, before anything of ours is blamed."""
    try:
        _plain_logits(target, torch.arange(2), [0])
    except RUNNING_ERRORS as error:
        raise UnsupportedTargetError(cannot_run(target.model, target.name, error)) from error


def _run(target: Target, part: Callable[[], Result]) -> Result:
    try:
        return part()
    except UnsupportedTargetError:
        raise
    except RUNNING_ERRORS as error:
        raise UnsupportedTargetError(
            f"{target.name} cannot run a draft tree: it does not take the mask, the positions or the cache of one "
            f"({first_line(error)})"
        ) from error


def _ignored_windows(target: Target, short: Target | None) -> str | None:
    """What to say where windows of the configuration change nothing."""
    if short is None:
        return None
    text = torch.arange(12) % target.vocab_size
    if not torch.equal(_plain_logits(target, text, [0]), _plain_logits(short, text, [0])):
        return None
    return (
        "its code does not follow the windows that its configuration names; load it with "
        f"{' and '.join(windows(target.config))} set to null in its config.json"
    )


def _rows_depend(target: Target, limit: float) -> str | None:
    """What to say where a token's logits change with the tokens after it, by transformers alone."""
    text = torch.arange(8) % target.vocab_size
    alone = _plain_logits(target, text[:4], text[4:6].tolist())
    among = _plain_logits(target, text[:4], text[4:].tolist())[:2]
    difference = float((alone - among).abs().max() / alone.std())
    if difference <= limit:
        return None
    return (
        f"a token's logits change with the tokens after it in the same pass, by {difference:.2g} standard deviations "
        f"(limit {limit:g}), as where activations are quantised together (LLM.int8) or tokens see what follows"
    )


def _deviation(target: Target, attempt: int) -> float:
    generator = torch.Generator().manual_seed(attempt)
    count = min(target.vocab_size, 997)
    prefix, (root, a, b, c, d, e) = (
        torch.randint(count, (7,), generator=generator),
        torch.randint(count, (6,), generator=generator).tolist(),
    )
    ac, ade, bc = (_plain_logits(target, prefix, path) for path in ([root, a, c], [root, a, d, e], [root, b, c]))
    # Nodes a, b | a-c, a-d, b-c: the token c stands under two parents. Then, after a-d is committed, e.
    expected = torch.stack((ac[0], ac[1], bc[1], ac[2], ade[2], bc[2], ade[3]))
    cache = target.new_cache(extra_slots=8)
    target.forward(prefix.to(target.device), torch.arange(7, device=target.device), target.causal(7), cache)
    cache.commit(None, 7)
    tokens = torch.tensor([root, a, b, c, d, c], device=target.device)
    positions = torch.tensor([7, 8, 8, 9, 9, 9], device=target.device)
    mask = ancestor_mask(torch.tensor([-1, -1, 0, 0, 1], device=target.device))
    tree = target.forward(tokens, positions, mask, cache).logits[0]  # [6, vocab]
    cache.commit(torch.tensor([8, 11], device=target.device), 3)
    after = target.forward(
        torch.tensor([e], device=target.device), torch.tensor([10], device=target.device), target.causal(1), cache
    ).logits[0]
    return float((torch.cat((tree, after)) - expected).abs().max() / expected.std())


def _plain_logits(target: Target, prefix: Tensor, path: Sequence[int]) -> Tensor:
    """Logits of the path's tokens by transformers alone: no cache, no mask of ours. [len(path), vocab]."""
    tokens = torch.cat((prefix, torch.tensor(path))).to(target.device)
    return target.upcast(target.model(input_ids=tokens[None], use_cache=False).logits[0, -len(path) :])
