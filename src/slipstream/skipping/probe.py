"""Watching modules in a tiny forward: which are called, what they return, and how it differs from their input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.skipping.plan import Patch, Returned, changes
from slipstream.target.shadow import Change, Forward, shadow


def watch(decoder: nn.Module, modules: Sequence[nn.Module], patches: Sequence[Patch] = ()) -> dict[nn.Module, Returned]:
    """Run `decoder` once with `patches` in place; describe each of `modules` that was called and returned a tensor."""
    seen: dict[nn.Module, Returned] = {}
    changed = changes(patches)

    def watching(module: nn.Module) -> Change:
        def change(own: Forward) -> Forward:
            run = changed[module](own) if module in changed else own

            def forward(*args: Any, **kwargs: Any) -> Any:
                given = args[0] if args else kwargs.get("hidden_states")
                before = given.clone() if isinstance(given, Tensor) else None  # a layer may add in place
                output = run(*args, **kwargs)
                entries = output if isinstance(output, tuple) else (output,)
                if entries and isinstance(entries[0], Tensor):
                    seen[module] = Returned(
                        width=entries[0].shape[-1],
                        tuple_length=len(output) if isinstance(output, tuple) else None,
                        only_hidden=all(entry is None for entry in entries[1:]),
                        change=_largest_difference(before, entries[0]),
                    )
                return output

            return forward

        return change

    _forward_four_tokens(shadow(decoder, {**changed, **{module: watching(module) for module in modules}}))
    return seen


def _largest_difference(before: Tensor | None, after: Tensor) -> float:
    if before is None or before.shape != after.shape or before.dtype != after.dtype:
        return float("inf")
    return float((after.to(before.device) - before).abs().max())


def _forward_four_tokens(decoder: nn.Module) -> None:
    embedding = decoder.get_input_embeddings()  # type: ignore[operator]  # a PreTrainedModel
    vocab_size, device = embedding.weight.shape[0], embedding.weight.device
    if device.type == "meta":  # offloaded: accelerate moves inputs where it loads the weights
        device = torch.device("cpu")
    token_ids = torch.tensor([[vocab_size * k // 5 for k in range(1, 5)]], device=device)
    decoder(input_ids=token_ids, use_cache=False)


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """No gradients and no dropout inside; training flags and random state come back as they were."""
    training = [module for module in model.modules() if module.training]
    devices = {tensor.device for tensor in model.parameters() if tensor.device.type == "cuda"}
    # In evaluation mode nothing is drawn, and other threads may be drawing from the same state.
    drawing = torch.random.fork_rng(devices=devices) if training else nullcontext()
    with torch.no_grad(), drawing:
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True
