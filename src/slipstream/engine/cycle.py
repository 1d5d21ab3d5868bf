"""The passes of one sequence: its prompt in chunks, then cycles that propose, verify, commit and observe.

Plain decoding is the same cycle with empty trees. Invariant between passes: `root` is the last committed token and its
KV is not in the cache; `length` tokens are cached, so the root's position is `length`. The prompt is prefilled up to
its last token, which is the first root, so the first cycle is like every other, and `length` may be 0.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from slipstream.core.logits import LogitsPipeline
from slipstream.core.logprobs import TokenLogprobs, token_logprobs
from slipstream.core.rules import make_rule
from slipstream.core.tree import DraftTree, ancestor_mask, empty_tree
from slipstream.core.verify import Outcome, nodes_to_move, read_walk, walk
from slipstream.drafting.base import Drafter, Generation, Observed, Scouts, rows_after_root
from slipstream.engine.kept import KeptText
from slipstream.engine.sequence import DraftTrace, Step, TokenSequence
from slipstream.errors import SlipstreamError
from slipstream.runtime.clock import CycleClock
from slipstream.runtime.decisions import agree
from slipstream.target.target import Target


@dataclass(frozen=True, slots=True)
class _Pass:
    """A verified tree."""

    tree: DraftTree
    logits: Tensor | None  # [n + 1, vocab], where somebody asks for them
    features: Tensor | None  # [n + 1, features]
    choice: Tensor  # [n + 1]
    order: Tensor  # [n] nodes, those kept first
    outcome: Outcome
    moved: bool  # whether the rows of the path lie behind the root's already


class Decoding:
    """A sequence's cache, rule, logits pipeline and drafting, and the passes that advance it."""

    def __init__(
        self,
        sequence: TokenSequence,
        target: Target,
        drafter: Drafter,
        kept: KeptText | None,
        *,
        weights: int,
        prefill_chunk: int,
        to_keep: bool,
    ) -> None:
        """kept: what the sequence may go on from; its cache is used in any case. weights: their stamp, for those who go
        on from this one; to_keep: whether others may.
        """
        self.sequence, self.target, self.drafter, self.features = sequence, target, drafter, drafter.features
        request, device = sequence.request, target.device
        self.cache = target.new_cache(extra_slots=drafter.draft_slots + 1) if kept is None else kept.cache
        self.cache.rollback(0)
        noise = target.executor.gumbel_rows
        self.rule = make_rule(
            request.processing, request.sampling, target.vocab_size, device, drafter.confidence, noise
        )
        self.pipeline = LogitsPipeline(request.processing, vocab_size=target.vocab_size, device=device)
        self.pipeline.start(sequence.tokens)
        self.generation = Generation(target, self.cache, self.rule, sequence.tokens, len(sequence.tokens))
        self.drafting = drafter.start(self.generation)
        self.alone, self.clock = empty_tree(device), CycleClock(device)
        self._kept = kept
        self._num_kept = 0 if kept is None else kept.num_shared(sequence.tokens)  # tokens that need no pass
        self._prefill_chunk, self._prefill_s = prefill_chunk, 0.0
        self._chunks = deque(self._cut_prompt(self._num_kept))
        self._to_keep = to_keep and target.family.may_cut_passes  # else keys depend on the pass that they were made in
        self._weights = weights
        self._observed: list[Tensor] = []  # features of all tokens cached, if they are to be kept
        self._is_whole = True

    @property
    def next_chunk(self) -> int:
        """Tokens of the prompt that the next pass runs; 0: it is a cycle."""
        return self._chunks[0][1] - self._chunks[0][0] if self._chunks else 0

    @torch.inference_mode()
    def advance(self) -> Step | None:
        """One pass of the target: the next chunk of the prompt, which emits nothing, or a cycle.

        Raises SlipstreamError after a pass that was interrupted: nothing can be said of what it left behind.
        """
        if not self._is_whole:
            raise SlipstreamError("this sequence was interrupted within a pass and cannot go on; begin it anew")
        self._is_whole = False
        began = time.perf_counter() - self._prefill_s
        if self._kept is not None:
            self._recall(self._kept)
            self._prefill_s = time.perf_counter() - began
        if self._chunks:
            self._prefill(*self._chunks.popleft())
            step, self._prefill_s = None, time.perf_counter() - began
        else:
            step, self._prefill_s = self.step(), 0.0
        self._is_whole = True
        return step

    def text_to_keep(self) -> KeptText | None:
        """The cache with the text that it holds; None after an interrupted pass, which may have left anything there."""
        if not self._is_whole:
            return None
        if self._kept is not None:
            return self._kept  # no pass was made
        tokens = self.sequence.tokens[: self.cache.length] if self._to_keep else []
        return KeptText(self.cache, tokens, self._observed, self._weights)

    def _recall(self, kept: KeptText) -> None:
        """Go on from a kept text: its keys are there, and the drafter observes its tokens as if they were prefilled."""
        features = torch.cat(list(kept.features)) if kept.features else None
        for first in range(0, self._num_kept, self._prefill_chunk):
            end = min(first + self._prefill_chunk, self._num_kept)
            self.cache.commit(None, end - first)
            self._observe_prompt(first, None if features is None else features[first:end])
        self._kept = None

    def _cut_prompt(self, first: int) -> list[tuple[int, int]]:
        """(first, end) of the passes that cache all tokens from `first` on but the root."""
        chunks = self.target.family.prefill_chunks(len(self.sequence.tokens) - first, self._prefill_chunk)
        return [(first + start, first + end) for start, end in chunks]

    def _prefill(self, first: int, end: int) -> None:
        """Cache these tokens, the root not even where it must be part of the pass."""
        tokens = torch.tensor(self.sequence.tokens[first:end], device=self.target.device)
        output = self.target.forward(
            tokens,
            torch.arange(first, end, device=tokens.device),
            self.target.causal(end - first),
            self.cache,
            features=self.features,
            last_logits_only=True,
        )
        kept = min(end, len(self.sequence.tokens) - 1) - first
        self.cache.commit(None, kept)
        self._observe_prompt(first, None if output.features is None else output.features[0, :kept])

    def _observe_prompt(self, first: int, features: Tensor | None) -> None:
        self._observe(Observed(tokens=self.sequence.tokens[first : self.cache.length], features=features))

    def _observe(self, observed: Observed) -> None:
        if observed.features is not None and self._to_keep:
            self._observed.append(observed.features.clone())  # not a view, which would keep rows of a whole tree
        self.drafting.observe(observed)

    def _renew_keys(self) -> None:
        """Prefill anew where the keys in the cache are void for the text as it has grown."""
        if self.target.family.must_reprefill(self.cache.length, len(self.sequence.tokens)):
            self.cache.rollback(0)
            self._observed.clear()
            self.drafting = self.drafter.start(self.generation)  # what it knows of the old keys and features is void
            for first, end in self._cut_prompt(0):
                self._prefill(first, end)

    def _logprobs(self, pass_: _Pass, emitted: list[int]) -> tuple[TokenLogprobs, ...]:
        count = self.sequence.request.logprobs
        if count is None:
            return ()
        rows = [0, *(1 + node for node in pass_.outcome.path)][: len(emitted)]
        assert pass_.logits is not None
        return token_logprobs(pass_.logits[rows], emitted, count)

    # -- the cycle ---------------------------------------------------------------------------------------------------

    def step(self) -> Step:
        """One cycle: propose, verify, cut, commit, observe."""
        self.clock.begin()
        self._renew_keys()
        self.rule.begin(self.cache.length)
        tree, scouts = self._propose()
        self.clock.lap("draft")
        pass_ = self._verify(tree, scouts)
        emitted = self.sequence.cut(pass_.outcome.tokens)
        logprobs = self._logprobs(pass_, emitted)
        self._commit(pass_, emitted)
        seconds = agree(self.clock.seconds_by_part())
        self.drafting.end_cycle({} if self.target.executor.was_preparing() else seconds)
        num_scouts = 0 if scouts is None else scouts.tokens.shape[0]
        counts = tree.num_nodes, min(len(pass_.outcome.path), len(emitted)), num_scouts
        step = Step.timed(seconds, self._prefill_s, emitted, *counts, self.sequence.finish_reason, logprobs)
        return replace(step, draft=_trace(pass_, emitted)) if self.sequence.request.trace else step

    def _propose(self) -> tuple[DraftTree, Scouts | None]:
        self.generation.max_depth = self.sequence.room
        if self.generation.max_depth == 0:
            return self.alone, None
        tree = self.drafting.propose().cut(self.generation.max_depth)
        most_nodes = self.target.family.most_nodes(self.cache.length)
        return tree if most_nodes is None else tree.first(most_nodes), self.drafting.scouts()

    def _verify(self, tree: DraftTree, scouts: Scouts | None) -> _Pass:
        """Run the root, the tree and m scouts, choose at every node, walk. Copies to the host once."""
        if scouts is None and self._may_replay():
            return self._replay(tree)
        tokens, parents, depth = rows_after_root(tree, scouts, self.generation.max_depth)  # [n + m] each
        visible = ancestor_mask(parents)  # [1 + n + m, 1 + n + m]
        output = self.target.forward(
            torch.cat((self.generation.root, tokens)),
            self.cache.lengths + torch.cat((depth.new_zeros(1), depth)),
            visible,
            self.cache,
            features=self.features,
            on_built=lambda: self.clock.lap("build"),
        )
        self.clock.lap("verify")
        rows = 1 + tree.num_nodes
        ancestors = visible[:rows, :rows]  # the scouts are no part of the draft
        choice = agree(self.rule.choose(self.pipeline.process(output.logits[0, :rows], tree.tokens, ancestors), tree))
        kept = walk(tree, choice, ancestors)
        scouted = () if scouts is None else (scouts.summarise(output.logits[0, rows:]),)
        outcome = read_walk(kept, choice, *scouted)  # the copy
        self.clock.lap("sample")
        features = None if output.features is None else output.features[0]
        return _Pass(tree, output.logits[0], features, choice, kept.order, outcome, moved=False)

    def _may_replay(self) -> bool:
        """Whether what verifies a tree hangs on the numbers in tensors alone, and somebody makes use of it."""
        executor, keys = self.target.executor, (self.rule.key, self.pipeline.key)
        return executor.replays and self.target.may_replay and None not in keys

    def _replay(self, tree: DraftTree) -> _Pass:
        """The same as one stage, which moves the rows of the path before the host knows it. Copies to the host once."""
        with_logits = self.sequence.request.logprobs is not None
        inputs = self.rule.inputs(tree.max_depth)

        def work(root: Tensor, tokens: Tensor, parents: Tensor, depth: Tensor, *inputs: Tensor) -> tuple[Any, ...]:
            drafted = replace(tree, tokens=tokens, parents=parents, depth=depth)
            visible = ancestor_mask(parents)
            positions = self.cache.lengths + torch.cat((depth.new_zeros(1), depth))
            output = self.target.forward(
                torch.cat((root, tokens)), positions, visible, self.cache, features=self.features
            )
            with self.rule.reading(inputs):
                choice = self.rule.choose(self.pipeline.process(output.logits[0], tokens, visible), drafted)
            kept = walk(drafted, choice, visible)
            if tree.num_nodes > 0:
                self.cache.move((self.cache.lengths + 1 + kept.order[: tree.max_depth])[None])
            features = None if output.features is None else output.features[0]
            return kept, choice, features, output.logits[0] if with_logits else None

        key = "verify", self.features, tree.num_nodes, tree.max_depth, self.rule.key, self.pipeline.key, with_logits
        tensors = (self.generation.root, tree.tokens, tree.parents, tree.depth, *inputs)
        found: Any = self.target.executor.stage(key, work, tensors, self.cache, slots=1 + tree.num_nodes)
        kept, choice, features, logits = found
        self.clock.lap("verify")
        outcome = read_walk(kept, choice)  # the copy
        self.clock.lap("sample")
        return _Pass(tree, logits, features, choice, kept.order, outcome, moved=True)

    def _commit(self, pass_: _Pass, emitted: list[int]) -> None:
        """Keep the KV of the root and of all emitted tokens but the last, which becomes the root."""
        path, tokens, features = pass_.outcome.path[: len(emitted) - 1], self.sequence.tokens, pass_.features
        nodes = nodes_to_move(pass_.order, path)
        slots = None if nodes is None or pass_.moved else self.cache.length + 1 + nodes
        self.cache.commit(slots, 1 + len(path))
        rows = slice(0, 1 + len(path)) if nodes is None else torch.cat((nodes.new_zeros(1), 1 + nodes))
        observed = Observed(
            tokens=[tokens[-1], *emitted[:-1]],
            features=None if features is None else features[rows],
            tree=pass_.tree,
            choice=pass_.choice,
            path=path,
            scouted=pass_.outcome.further,
        )
        tokens.extend(emitted)
        last_row = 1 + path[-1] if path else 0
        self.generation.root = pass_.choice[last_row : last_row + 1]
        self.pipeline.commit(emitted)
        self._observe(observed)


def _trace(pass_: _Pass, emitted: list[int]) -> DraftTrace:
    tree, path = pass_.tree, pass_.outcome.path[: len(emitted)]
    return DraftTrace(tuple(tree.tokens.tolist()), tuple(tree.parents.tolist()), tuple(path))
