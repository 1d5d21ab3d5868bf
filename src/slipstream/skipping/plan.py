"""Leaving sub-layers out: what stands in for a skipped module, and the shadow of the model that has it.

A skipped sub-layer returns zeros, so that the residual stream passes it by; a layer that loses both returns its input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from slipstream.target.shadow import Change, Forward, shadow


@dataclass(frozen=True, slots=True)
class Patch:
    """A forward that stands in for that of `module`."""

    module: nn.Module
    forward: Forward


class SkipPlan:
    """A skip set made ready for one model: `model` is its shadow without the skipped sub-layers, to be run as often as
    wanted and from any thread.
    """

    __slots__ = ("model",)

    def __init__(self, model: nn.Module, patches: Iterable[Patch]) -> None:
        self.model = shadow(model, changes(patches))


def changes(patches: Iterable[Patch]) -> dict[nn.Module, Change]:
    """What a shadow needs to have `patches` in place."""
    return {patch.module: _replacing(patch.forward) for patch in patches}


def _replacing(forward: Forward) -> Change:
    return lambda own: forward


@dataclass(frozen=True, slots=True)
class Returned:
    """What a module returned in a real forward: hidden states, alone or as the first entry of a tuple."""

    width: int  # size of the last dimension of the hidden states
    tuple_length: int | None  # None: not a tuple
    only_hidden: bool  # nothing but None beside the hidden states
    change: float  # largest absolute difference to the module's input; inf where shape or dtype differ


def hidden_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states that a module was called with, [..., hidden]."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def zeros_like(returned: Returned) -> Forward:
    """A forward that returns zeros, always new ones: Falcon adds to the MLP's output in place."""

    def zeros(*args: Any, **kwargs: Any) -> Tensor:
        hidden = hidden_input(args, kwargs)
        return hidden.new_zeros((*hidden.shape[:-1], returned.width))

    return _as_returned(zeros, returned)


def identity_like(returned: Returned) -> Forward:
    """A forward that returns its input."""

    def identity(*args: Any, **kwargs: Any) -> Tensor:
        return hidden_input(args, kwargs)

    return _as_returned(identity, returned)


def _as_returned(hidden: Callable[..., Tensor], returned: Returned) -> Forward:
    """`hidden` in the structure in which the module returned its hidden states; the other entries are None."""
    if returned.tuple_length is None:
        return hidden
    rest = (None,) * (returned.tuple_length - 1)
    return lambda *args, **kwargs: (hidden(*args, **kwargs), *rest)
