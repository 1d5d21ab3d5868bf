"""The one decoding loop: propose, verify, commit, observe. Plain decoding is the same loop with empty trees.

Invariant between cycles: `root` is the last committed token and its KV is not in the cache; `length` tokens are
cached, so the root's position is `length`. The prompt is prefilled up to its last token, which is the first root, so
the first cycle is like every other, and `length` may be 0.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from slipstream.core.logits import LogitsPipeline, ProcessingSettings
from slipstream.core.rules import make_rule
from slipstream.core.sampling import SamplingSettings
from slipstream.core.tree import DraftTree, ancestor_mask, empty_tree
from slipstream.core.verify import walk
from slipstream.drafting.base import Drafter, Generation, Observed, Scouts
from slipstream.errors import ContextLengthError, InputError
from slipstream.runtime.clock import CycleClock
from slipstream.target.cache import KVCache
from slipstream.target.target import Target, TargetOutput

FinishReason = Literal["eos", "stop", "length", "context"]
"""Why a generation ended: an end-of-sequence token, a stop string, the token budget, or the context limit."""


class Stopper(Protocol):
    """Watches the emitted tokens, all of them, for a stop string."""

    def append_token(self, token: int) -> bool:
        """Take the next emitted token; true if the text so far completes a stop string."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One generation: what to continue, how to choose tokens, when to stop."""

    prompt_ids: Sequence[int]
    processing: ProcessingSettings
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    stopper: Stopper | None = None

    @property
    def max_new_tokens(self) -> int:
        return self.processing.max_length - len(self.prompt_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One draft-verify cycle."""

    token_ids: tuple[int, ...]
    """Tokens emitted, after all cuts."""
    num_drafted: int
    """Nodes that the target verified."""
    num_accepted: int
    """Drafted tokens among those emitted."""
    prefill_s: float = 0.0
    """Seconds spent on the prompt; not 0 only in the first step."""
    draft_s: float = 0.0
    """Seconds of the cycle in the drafter (for all five parts: `slipstream.runtime.clock`)."""
    build_s: float = 0.0
    """Seconds to build the rows, positions and masks of the target's pass."""
    verify_s: float = 0.0
    """Seconds of the target's pass."""
    sample_s: float = 0.0
    """Seconds to process logits, choose at every node and walk, up to the cycle's one copy to the host."""
    host_s: float = 0.0
    """Seconds of the cycle outside all these: cuts, commit, what the drafter observes."""
    finish_reason: FinishReason | None = None
    """Set in the last step."""
    text: str = ""
    """Text that became final in this step; filled in by `Model.stream`."""


class Engine:
    """Drives one target and one drafter. Several generations may be in progress at once, in one thread or in several;
    each has its own state.
    """

    def __init__(self, target: Target, drafter: Drafter, *, prefill_chunk: int = 512) -> None:
        """prefill_chunk: prompt tokens run through the target at once."""
        if prefill_chunk < 1:
            raise InputError(f"prefill_chunk is {prefill_chunk}; it must be at least 1")
        self.target, self.drafter, self.prefill_chunk = target, drafter, prefill_chunk
        self._spare: deque[KVCache] = deque(maxlen=1)

    def generate(self, request: Request) -> Iterator[Step]:
        """Yield a Step per cycle until the request is done. Closing the iterator early is safe.

        Raises InputError for an empty prompt or budget, ContextLengthError for a prompt that fills the context.
        """
        check_request(request, self.target)
        cache = self._take_cache()
        try:
            decoding = _Decoding(self, request, cache)
            step = decoding.first_step()
            yield step
            while step.finish_reason is None:
                step = decoding.step()
                yield step
        finally:
            self._give_back(cache)

    def _take_cache(self) -> KVCache:
        try:
            return self._spare.pop()  # at once: two threads must not get the same one
        except IndexError:
            return self.target.new_cache(extra_slots=self.drafter.draft_slots + 1)

    def _give_back(self, cache: KVCache) -> None:
        cache.rollback(0)
        self._spare.append(cache)


def check_request(request: Request, target: Target) -> None:
    """Refuse a request that cannot be served, before any work is done."""
    if len(request.prompt_ids) == 0:
        raise InputError("the prompt is empty; give at least one token")
    if request.max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {request.max_new_tokens}; it must be at least 1")
    out_of_range = next((t for t in request.prompt_ids if not 0 <= t < target.vocab_size), None)
    if out_of_range is not None:
        raise InputError(f"token id {out_of_range} is not in the target's vocabulary of {target.vocab_size}")
    if target.context_length is not None and len(request.prompt_ids) >= target.context_length:
        raise ContextLengthError(
            f"the prompt has {len(request.prompt_ids)} tokens, but the target's context is {target.context_length}; "
            f"shorten the prompt to at most {target.context_length - 1} tokens"
        )


class _Decoding:
    """State of one generation, and the cycle that advances it."""

    def __init__(self, engine: Engine, request: Request, cache: KVCache) -> None:
        self.target, self.request, self.cache = engine.target, request, cache
        self.prefill_chunk = engine.prefill_chunk
        self.features = engine.drafter.features
        vocab_size, device = self.target.vocab_size, self.target.device
        self.rule = make_rule(request.processing, request.sampling, vocab_size, device, engine.drafter.confidence)
        self.pipeline = LogitsPipeline(request.processing, vocab_size=vocab_size, device=device)
        self.generation = Generation(self.target, cache, self.rule, list(request.prompt_ids), len(request.prompt_ids))
        self.drafter = engine.drafter
        self.drafting = self.drafter.start(self.generation)
        self.alone = empty_tree(device)
        self.clock = CycleClock(device)

    @torch.inference_mode()
    def first_step(self) -> Step:
        """Prefill the prompt up to its last token, and make the first cycle."""
        began = time.perf_counter()
        self.pipeline.start(self.generation.tokens)
        self._prefill()
        return self.step(prefill_s=time.perf_counter() - began)

    @torch.inference_mode()
    def step(self, prefill_s: float = 0.0) -> Step:
        """One cycle: propose, verify, cut, commit, observe."""
        self.clock.begin()
        self._renew_keys()
        self.rule.begin(self.cache.length)
        tree, scouts = self._propose()
        self.clock.lap("draft")
        pass_ = self._verify(tree, scouts)
        emitted, finish_reason = self._cut(pass_.emitted)
        self._commit(pass_, emitted)
        seconds = self.clock.seconds_by_part()
        self.drafting.end_cycle(seconds)
        return Step(
            token_ids=tuple(emitted),
            num_drafted=tree.num_nodes,
            num_accepted=min(len(pass_.path), len(emitted)),
            prefill_s=prefill_s,
            draft_s=seconds["draft"],
            build_s=seconds["build"],
            verify_s=seconds["verify"],
            sample_s=seconds["sample"],
            host_s=seconds["host"],
            finish_reason=finish_reason,
        )

    def _prefill(self) -> None:
        """Cache all tokens but the root, in chunks as the model's family has them."""
        tokens = torch.tensor(self.generation.tokens, device=self.target.device)  # [length + 1]
        for first, end in self.target.family.prefill_chunks(tokens.shape[0], self.prefill_chunk):
            output = self.target.forward(
                tokens[first:end],
                torch.arange(first, end, device=tokens.device),
                self.target.causal(end - first),
                self.cache,
                features=self.features,
                last_logits_only=True,
            )
            kept = min(end, tokens.shape[0] - 1) - first
            self.cache.commit(None, kept)
            features = None if output.features is None else output.features[0, :kept]
            self.drafting.observe(Observed(tokens=self.generation.tokens[first : first + kept], features=features))

    def _renew_keys(self) -> None:
        """Prefill anew where the keys in the cache are void for the text as it has grown."""
        if self.target.family.must_reprefill(self.cache.length, len(self.generation.tokens)):
            self.cache.rollback(0)
            self.drafting = self.drafter.start(self.generation)  # what it knows of the old keys and features is void
            self._prefill()

    def _propose(self) -> tuple[DraftTree, Scouts | None]:
        self.generation.max_depth = self._room()
        if self.generation.max_depth == 0:
            return self.alone, None
        tree = self.drafting.propose().cut(self.generation.max_depth)
        most_nodes = self.target.family.most_nodes(self.cache.length)
        return tree if most_nodes is None else tree.first(most_nodes), self.drafting.scouts()

    def _room(self) -> int:
        """Depth worth drafting: a cycle emits at most depth + 1 tokens, and no pass may exceed the target's reach."""
        room, reach = self._remaining() - 1, self.target.family.reach(len(self.generation.tokens))
        return room if reach is None else min(room, max(0, reach - len(self.generation.tokens)))

    def _remaining(self) -> int:
        """Tokens that may still be emitted, by the budget and by the context."""
        budget, context = self.request.processing.max_length, self.target.context_length
        return (budget if context is None else min(budget, context)) - len(self.generation.tokens)

    def _verify(self, tree: DraftTree, scouts: Scouts | None) -> _Pass:
        """Run the root, the tree and m scouts, choose at every node, walk. Copies to the host once."""
        rows = 1 + tree.num_nodes
        tokens, parents, depth = self._rows(tree, scouts)  # [n + m]
        visible = ancestor_mask(parents)  # [n + 1 + m, n + 1 + m]
        positions = self.cache.length + torch.cat((depth.new_zeros(1), depth))
        output = self.target.forward(
            torch.cat((self.generation.root, tokens)),
            positions,
            visible,
            self.cache,
            features=self.features,
            on_built=lambda: self.clock.lap("build"),
        )
        self.clock.lap("verify")
        ancestors = visible[:rows, :rows]  # the scouts are no part of the draft
        logits = self.pipeline.process(output.logits[0, :rows], tree.tokens, ancestors)
        choice = self.rule.choose(logits, tree)  # [n + 1]
        kept = walk(tree, choice, ancestors)
        scouted = [] if scouts is None else [scouts.summarise(output.logits[0, rows:])]
        num_accepted, *rest = torch.cat((kept.num_accepted[None], kept.order, choice, *scouted)).tolist()  # the copy
        self.clock.lap("sample")
        path, choices = rest[:num_accepted], rest[rows - 1 : 2 * rows - 1]
        emitted = [choices[0], *(choices[node + 1] for node in path)]
        return _Pass(tree, output, choice, kept.order, path, emitted, rest[2 * rows - 1 :])

    def _rows(self, tree: DraftTree, scouts: Scouts | None) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, parents and depth of the rows after the root's: the nodes, and behind them the scouts."""
        if scouts is None:
            return tree.tokens, tree.parents, tree.depth
        parents = torch.where(scouts.parents < 0, scouts.parents, scouts.parents + tree.num_nodes)
        depth = scouts.depth.clamp(max=self.generation.max_depth)
        return (
            torch.cat((tree.tokens, scouts.tokens)),
            torch.cat((tree.parents, parents)),
            torch.cat((tree.depth, depth)),
        )

    def _cut(self, tokens: Sequence[int]) -> tuple[list[int], FinishReason | None]:
        """The tokens that plain decoding would have emitted before it stopped, and why it stopped."""
        remaining = self._remaining()
        for index, token in enumerate(tokens):
            emitted = list(tokens[: index + 1])
            stopped = self.request.stopper is not None and self.request.stopper.append_token(token)
            if token in self.request.processing.eos_token_ids:
                return emitted, "eos"
            if stopped:
                return emitted, "stop"
            if index + 1 == remaining:
                at_budget = len(self.generation.tokens) + remaining == self.request.processing.max_length
                return emitted, "length" if at_budget else "context"
        return list(tokens), None

    def _commit(self, pass_: _Pass, emitted: list[int]) -> None:
        """Keep the KV of the root and of all emitted tokens but the last, which becomes the root."""
        path = pass_.path[: len(emitted) - 1]
        committed = [self.generation.tokens[-1], *emitted[:-1]]
        slots, rows = self._places(path, pass_.order)
        self.cache.commit(slots, len(path) + 1)
        self.generation.tokens.extend(emitted)
        last_row = path[-1] + 1 if path else 0
        self.generation.root = pass_.choice[last_row : last_row + 1]
        self.pipeline.commit(emitted)
        features = pass_.output.features
        self.drafting.observe(
            Observed(
                tokens=committed,
                features=None if features is None else features[0, rows],
                tree=pass_.tree,
                choice=pass_.choice,
                path=path,
                scouted=pass_.scouted,
            )
        )

    def _places(self, path: list[int], order: Tensor) -> tuple[Tensor | None, Tensor | slice]:
        """Where the path's KV lies (None: where it belongs already), and the rows of root and path in the pass."""
        if path == list(range(len(path))):
            return None, slice(0, len(path) + 1)
        nodes = order[: len(path)]
        return self.cache.length + 1 + nodes, torch.cat((nodes.new_zeros(1), nodes + 1))


@dataclass(frozen=True, slots=True)
class _Pass:
    """A verified tree."""

    tree: DraftTree
    output: TargetOutput
    choice: Tensor  # [n + 1]
    order: Tensor  # [n] nodes, those kept first
    path: list[int]  # nodes kept
    emitted: list[int]  # the tokens of the path and the next token, before cuts
    scouted: list[int]  # what the drafter read off its scouts
