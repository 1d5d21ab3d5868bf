"""Leaving sub-layers out for a while: what stands in for a skipped module, and putting it there and back.

A skipped sub-layer returns zeros, so that the residual stream passes it by; a layer that loses both returns its input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import Tensor, nn

Forward = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Patch:
    """A forward that stands in for that of `module`."""

    module: nn.Module
    forward: Forward


class SkipPlan:
    """A skip set made ready for one model: a context manager to enter once per drafted token, as often as wanted.

    Inside, the skipped modules carry a `forward` of ours; leaving puts back exactly what was there, be it the class's
    own or one that accelerate had set. Plans may nest. Not for use from several threads at once.
    """

    __slots__ = ("_originals", "_patches")

    def __init__(self, patches: Iterable[Patch]) -> None:
        self._patches = tuple(patches)
        self._originals: list[list[Forward | None]] = []  # one entry for each time the plan is entered now

    def __enter__(self) -> None:
        # Straight into __dict__: nn.Module.__setattr__ costs more than everything else here.
        self._originals.append([patch.module.__dict__.get("forward") for patch in self._patches])
        try:
            for patch in self._patches:
                patch.module.__dict__["forward"] = patch.forward
        except BaseException:  # an interrupt must not leave the target patched
            self._restore()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._restore()

    def leave(self) -> None:
        """Put back what is still in place: an interrupt may strike at the very moment of leaving the context."""
        while self._originals:
            self._restore()

    def _restore(self) -> None:
        for patch, original in zip(self._patches, self._originals[-1], strict=True):
            if original is None:
                patch.module.__dict__.pop("forward", None)
            else:
                patch.module.__dict__["forward"] = original
        self._originals.pop()  # last, so that an interrupted restoring can be made again


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
