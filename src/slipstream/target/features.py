"""Features: what a drafter wants to see of the target's passes, and passes that leave them behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.target.shadow import Change, Forward, shadow


@dataclass(frozen=True, slots=True)
class Features:
    """What a drafter wants to see of the target's pass: nothing, the last hidden state, or the input of some layers."""

    last_hidden: bool = False
    """The hidden state after the final norm, which the LM head reads."""
    layers: tuple[int, ...] = ()
    """Hidden states entering these layers (0-based), in any order: those of layer j are `hidden_states[j]` as
    transformers counts them, those of layer 0 the embeddings."""

    def __bool__(self) -> bool:
        return self.last_hidden or bool(self.layers)

    def width(self, hidden_size: int) -> int:
        """Numbers that a token's features are, of a model of this hidden size."""
        return hidden_size * (self.last_hidden + len(self.layers))


class WatchedModel:
    """A shadow of a model whose passes leave features behind, for the thread that made the pass alone."""

    def __init__(self, model: nn.Module, base: nn.Module, layers: Mapping[int, nn.Module], features: Features) -> None:
        """base: returns the last hidden state first. layers: those that features name, by index."""
        self._passes = threading.local()
        self._wanted: list[nn.Module] = [layers[index] for index in features.layers]
        if features.last_hidden:
            self._wanted.insert(0, base)
        changes: dict[nn.Module, Change] = {layers[index]: self._keep_input(layers[index]) for index in features.layers}
        if features.last_hidden:
            changes[base] = self._keep_output(base)
        self.model = shadow(model, changes)

    @contextmanager
    def watching(self) -> Iterator[dict[nn.Module, Tensor]]:
        """Gather what a pass of `model` leaves behind, to be put in order by `gathered`."""
        seen: dict[nn.Module, Tensor] = {}
        self._passes.seen = seen
        try:
            yield seen
        finally:
            self._passes.seen = {}

    def gathered(self, seen: Mapping[nn.Module, Tensor], device: torch.device) -> Tensor:
        """[batch, n, hidden x number of wanted states], last hidden state first, then layers as they were asked for."""
        try:
            return torch.cat([seen[module].to(device) for module in self._wanted], dim=-1)
        except KeyError as error:
            unseen = type(error.args[0]).__name__
            raise RuntimeError(f"a {unseen} among the layers is not run on text alone") from error

    def _keep_input(self, module: nn.Module) -> Change:
        def change(own: Forward) -> Forward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                self._passes.seen[module] = args[0] if args else kwargs["hidden_states"]
                return own(*args, **kwargs)

            return forward

        return change

    def _keep_output(self, module: nn.Module) -> Change:
        def change(own: Forward) -> Forward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                output = own(*args, **kwargs)
                self._passes.seen[module] = output[0]
                return output

            return forward

        return change
