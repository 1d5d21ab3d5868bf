"""EAGLE-3 (arXiv 2503.01840): a head on hidden states of several layers drafts a tree, a chain or a table's tree.

It is run as EAGLE's first heads are (`eagle/drafter.py`): the hidden states of newly committed tokens go through it in
one pass, then each level is one pass over the nodes to expand, each fed with its parent's output. What differs is in
the head: hidden states are fused first, the fed-back output needs no likeness to them, and drafts come from the head's
own vocabulary, whose columns are named by the target's ids. The noise of coupled sampling is read at those ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from slipstream.drafting.base import Generation, Observed
from slipstream.drafting.drafter import ModelDrafter
from slipstream.drafting.head_passes import HeadPasses
from slipstream.drafting.shape import Shape
from slipstream.errors import InputError
from slipstream.methods.eagle.drafter import EagleExpander
from slipstream.methods.eagle3.head import Eagle3Head, Eagle3Sizes
from slipstream.methods.eagle3.layouts import check_states
from slipstream.target.features import Features
from slipstream.target.target import Target


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a head is read, where its files leave that in doubt: a wrong reading changes no token, it drafts badly."""

    layer_shift: int = 0
    """Added to the number of every layer whose hidden states are read."""
    norm_feedback: bool | None = None
    """Whether the head is fed its own output after the norm; None: as its files say."""

    def __post_init__(self) -> None:
        if not isinstance(self.layer_shift, int) or isinstance(self.layer_shift, bool):
            raise InputError(f"layer_shift is {self.layer_shift!r}; it must be a whole number")
        if self.norm_feedback not in (None, True, False):
            raise InputError(f"norm_feedback is {self.norm_feedback!r}; it must be true or false")

    def of(self, sizes: Eagle3Sizes, target: Target) -> Eagle3Sizes:
        """The sizes of a head, read so. Raises InputError for a layer that the target has not."""
        states = tuple(one + self.layer_shift for one in sizes.states)
        check_states(states, target)
        feedback = sizes.norm_feedback if self.norm_feedback is None else self.norm_feedback
        return replace(sizes, states=states, norm_feedback=feedback)


class Eagle3Drafter(ModelDrafter):
    """A target's EAGLE-3 head and the shape of its drafts."""

    name = "eagle3"

    def __init__(self, target: Target, head: Eagle3Head, shape: Shape) -> None:
        """head: on the target's device, in its dtype, as `load_head` returns it."""
        super().__init__(target, shape)
        self.head, self.confidence, self.ids = head, head.confidence, head.ids
        self.features = Features(layers=head.sizes.states)
        self.passes = HeadPasses(target, head, head.dtype)
        self.embed: Callable[[Tensor], Tensor] = head.embedder(target)
        as_run: Any = target.prepared(head)
        self.fuse: Callable[[Tensor], Tensor] = as_run.fuse
        lm_head = as_run.scorer(target)
        self.score: Callable[[Tensor], Tensor] = lambda output: lm_head(head.before_lm_head(output))
        """Logits of the draft vocabulary, [b, n, columns], for outputs of the head [b, n, h]."""

    def expander(self, generation: Generation) -> Eagle3Expander:
        return Eagle3Expander(self, generation)

    def other_readings(self) -> Sequence[Mapping[str, Any]]:
        """The layers before and after those that the files name, and the other feedback."""
        sizes = self.head.sizes
        shifts = [one for one in (0, -1, 1) if all(0 <= state + one < self.target.num_layers for state in sizes.states)]
        feedbacks = (sizes.norm_feedback, not sizes.norm_feedback)
        return [{"layer_shift": shift, "norm_feedback": feedback} for shift in shifts for feedback in feedbacks][1:]


class Eagle3Expander(EagleExpander):
    """The head at work on one generation."""

    def __init__(self, drafter: Eagle3Drafter, generation: Generation) -> None:
        super().__init__(drafter, generation)
        self._fuse = drafter.fuse

    def catch_up(self, observed: Observed) -> None:
        """Take the hidden states of committed tokens, fused; a prompt's go through the head at once, but the last."""
        assert observed.features is not None
        fused = self._fuse(observed.features.to(self._target.device))
        super().catch_up(replace(observed, features=fused))
