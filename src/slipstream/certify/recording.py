"""The shape of every pass that an answer was made by, and the hidden states that its tokens were chosen from.

A recorder stands between the engine and a drafter and changes nothing. Shapes are recorded, not foreseen, since trees
that are sized by the clock differ from run to run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from slipstream.drafting.base import Drafter, Drafting, ForwardingDrafting, Generation, Observed, Scouts
from slipstream.engine.engine import Engine
from slipstream.engine.sequence import FinishReason, Request
from slipstream.target.features import Features
from slipstream.target.target import Target


@dataclass(frozen=True, slots=True)
class PassShape:
    """A pass of the target as a reference has to repeat it."""

    num_rows: int
    """The root, all drafted nodes and all scouts."""
    rows: tuple[int, ...]
    """The rows that a token was emitted from, in order: the root's (0), then those of the drafted tokens kept."""


ONE_ROW = PassShape(1, (0,))
"""The shape of plain decoding."""


@dataclass(frozen=True, slots=True)
class RecordedPass:
    """One pass that the engine made after the prompt."""

    shape: PassShape
    num_drafted: int
    """Nodes of the tree, scouts not counted."""
    hidden: Tensor  # [len(shape.rows), hidden] the last hidden state of the rows that emitted


@dataclass(frozen=True, slots=True)
class RecordedAnswer:
    """What the engine answered to one request, and how."""

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    passes: tuple[RecordedPass, ...]

    @property
    def num_drafted(self) -> int:
        return sum(one.num_drafted for one in self.passes)

    @property
    def num_accepted(self) -> int:
        return sum(len(one.shape.rows) - 1 for one in self.passes)


def record(target: Target, drafter: Drafter, request: Request, *, prefill_chunk: int) -> RecordedAnswer:
    """Let the engine answer a request with a drafter, and note every pass."""
    recorder = _Recorder(drafter)
    engine = Engine(target, recorder, prefill_chunk=prefill_chunk, keep=0)
    steps = list(engine.generate(request))
    finish_reason = steps[-1].finish_reason
    assert finish_reason is not None
    token_ids = tuple(token for step in steps for token in step.token_ids)
    return RecordedAnswer(token_ids, finish_reason, tuple(recorder.passes))


class _Recorder(Drafter):
    """Another drafter at its usual work; asks for the last hidden state beside what that one wants to see."""

    def __init__(self, inner: Drafter) -> None:
        self.inner, self.name, self.confidence = inner, inner.name, inner.confidence
        self.features = Features(last_hidden=True, layers=inner.features.layers)
        self.passes: list[RecordedPass] = []

    def start(self, generation: Generation) -> Drafting:
        return _Recording(self.inner.start(generation), self.inner.features, self.passes.append)

    @property
    def draft_slots(self) -> int:
        return self.inner.draft_slots


class _Recording(ForwardingDrafting):
    def __init__(self, inner: Drafting, wanted: Features, note: Callable[[RecordedPass], None]) -> None:
        super().__init__(inner)
        self._wanted, self._note = wanted, note
        self._num_scouts = 0  # of the pass under way; the engine asks for scouts only where there is room for a draft

    def scouts(self) -> Scouts | None:
        scouts = super().scouts()
        self._num_scouts = 0 if scouts is None else scouts.tokens.shape[0]
        return scouts

    def observe(self, observed: Observed) -> None:
        assert observed.features is not None
        width = observed.features.shape[-1] // (1 + len(self._wanted.layers))  # all states are as wide as the last
        if observed.tree is not None:
            num_rows = 1 + observed.tree.num_nodes + self._num_scouts
            shape = PassShape(num_rows, (0, *(node + 1 for node in observed.path)))
            self._note(RecordedPass(shape, observed.tree.num_nodes, observed.features[:, :width].clone()))
        self._num_scouts = 0
        super().observe(_as_asked(observed, self._wanted, width))


def _as_asked(observed: Observed, wanted: Features, width: int) -> Observed:
    """The same with the features that the inner drafter asked for. width: of one hidden state."""
    if wanted.last_hidden:
        return observed
    assert observed.features is not None
    features = observed.features[:, width:] if wanted.layers else None
    return Observed(
        tokens=observed.tokens,
        features=features,
        tree=observed.tree,
        choice=observed.choice,
        path=observed.path,
        scouted=observed.scouted,
    )
