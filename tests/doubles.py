"""Test drafters that know the answer, and helpers that run the engine on token ids.

A `Scripted` drafter is told the text that plain decoding gives, so a test decides how much of each draft is true:
acceptance happens where it should, through branches, and every kind of wrong draft can be played against the engine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from families import VOCAB_SIZE
from slipstream.core.logits import ProcessingSettings
from slipstream.core.sampling import SamplingSettings
from slipstream.core.tree import DraftTree, empty_tree
from slipstream.drafting.base import Drafter, Drafting, Generation, Observed
from slipstream.engine.engine import Engine
from slipstream.engine.sequence import Request, Step
from slipstream.methods.registry import METHODS, build_drafter
from slipstream.target.target import Target

Path = list[int]  # the tokens from the root's child to a node
Script = Callable[[Generation, Sequence[int]], list[Path]]
"""(run, the true tokens from here on) -> the nodes to draft as paths, parents before children."""


def tree_of(paths: Sequence[Path]) -> DraftTree:
    """The tree whose nodes are these paths, in this order."""
    index = {tuple(path): node for node, path in enumerate(paths)}
    assert len(index) == len(paths), "two nodes with the same path"
    parents = [index[tuple(path[:-1])] if len(path) > 1 else -1 for path in paths]
    assert all(parent < node for node, parent in enumerate(parents)), "a child before its parent"
    depth = [len(path) for path in paths]
    return DraftTree(
        torch.tensor([path[-1] for path in paths]),
        torch.tensor(parents),
        torch.tensor(depth),
        torch.zeros(len(paths)),
        max(depth),
    )


_NO_ARTEFACT = [name for name, method in METHODS.items() if method.artefact is None and name != "layer-skip"]
# Every method that needs no artefact, in shapes small enough for tiny targets: name -> (method, options).
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in _NO_ARTEFACT},
    "auto": ("auto", {"total": 5}),  # by cost it is "prompt-lookup-auto"
    "prompt-lookup": ("prompt-lookup", {"length": 10, "branches": 4}),
    "prompt-lookup-auto": ("prompt-lookup", {}),
    "prompt-lookup-total": ("prompt-lookup", {"total": 5}),
    "lookahead": ("lookahead", {"window": 7, "level": 5, "guesses": 7}),
    "lookahead-auto": ("lookahead", {}),
    "lookahead-total": ("lookahead", {"window": 3, "level": 4, "total": 5}),
    "layer-skip-dynamic": ("layer-skip", {"tree": "dynamic", "width": 3, "depth": 3, "total": 6}),
    "layer-skip-chain": ("layer-skip", {"tree": "chain", "length": 4}),
}


def configured(configuration: str, target: Target) -> Drafter:
    """A drafter of `CONFIGURATIONS` for a target."""
    method, options = CONFIGURATIONS[configuration]
    return build_drafter(method, target, options)


class Scripted(Drafter):
    """Proposes what its script says of the true continuation."""

    name = "scripted"

    def __init__(self, script: Script, truth: Sequence[int] = ()) -> None:
        """truth: the tokens that plain decoding emits after the prompt."""
        self.script, self.truth = script, list(truth)
        self.observed: list[Observed] = []

    def start(self, run: Generation) -> Drafting:
        self.observed.clear()
        return _Scripted(self, run)


class _Scripted(Drafting):
    def __init__(self, drafter: Scripted, run: Generation) -> None:
        self._drafter, self._run = drafter, run

    def propose(self) -> DraftTree:
        ahead = self._drafter.truth[len(self._run.tokens) - self._run.prompt_length :]
        paths = self._drafter.script(self._run, ahead)
        return tree_of(paths) if paths else empty_tree()

    def observe(self, observed: Observed) -> None:
        self._drafter.observed.append(observed)


def wrong(token: int, shift: int = 1) -> int:
    """Another token."""
    return (token + shift) % VOCAB_SIZE


def always_right(run: Generation, ahead: Sequence[int]) -> list[Path]:
    """A chain of the next four true tokens."""
    return chain_paths(ahead[:4])


def always_wrong(run: Generation, ahead: Sequence[int]) -> list[Path]:
    """Two chains that start wrong and go on with the truth."""
    first = ahead[0] if ahead else 0
    tails = [[wrong(first, shift), *ahead[1:3]] for shift in (1, 2)]
    return [path for tail in tails for path in chain_paths(tail)]


def right_behind_wrong(run: Generation, ahead: Sequence[int]) -> list[Path]:
    """Wrong branches in the first slots, three true tokens in the slots behind them."""
    true = list(ahead[:3])
    first = true[0] if true else 0
    return [*chain_paths([wrong(first), 5, 6]), *chain_paths([wrong(first, 2), 7]), *chain_paths(true)]


def nothing(run: Generation, ahead: Sequence[int]) -> list[Path]:
    """No draft at all."""
    return []


def far_too_deep(run: Generation, ahead: Sequence[int]) -> list[Path]:
    """A chain beyond every budget and context limit, true as far as the truth is known."""
    return chain_paths([*ahead, *([7] * (150 - len(ahead)))])


def exactly_the_budget(run: Generation, ahead: Sequence[int]) -> list[Path]:
    """A true chain that, with the next token, uses up all that may be emitted."""
    return chain_paths(ahead[: run.max_depth])


def chain_paths(tokens: Iterable[int]) -> list[Path]:
    """The nodes of a chain."""
    tokens = list(tokens)
    return [tokens[: depth + 1] for depth in range(len(tokens))]


def proposing(token: int) -> Script:
    """A script that offers `token` (an EOS, say) beside the truth and after it, at every depth."""

    def script(run: Generation, ahead: Sequence[int]) -> list[Path]:
        paths = [[token], [token, token]]
        for depth in range(1, min(4, len(ahead)) + 1):
            true = list(ahead[:depth])
            paths += [path for path in (true, [*true, token]) if path not in paths]
        return paths

    return script


def random_tree(run: Generation, ahead: Sequence[int]) -> list[Path]:
    """A tree of up to 14 nodes in a random order: part of the truth, wrong siblings, and branches under both.

    The same position always draws the same tree. Wrong nodes stand before and between the true ones, so that the
    accepted path is scattered over the slots.
    """
    rng = random.Random(len(run.tokens))
    paths: list[Path] = []
    true_depth = rng.randint(0, 4)
    while len(paths) < 14:
        parent = rng.choice([[], *paths])
        on_truth = parent == list(ahead[: len(parent)]) and len(parent) < min(true_depth, len(ahead))
        token = ahead[len(parent)] if on_truth and rng.random() < 0.5 else rng.randrange(VOCAB_SIZE)
        path = [*parent, token]
        if path not in paths and len(path) <= 5:
            paths.append(path)
    return paths


@dataclass
class Decoded:
    """What the engine emitted for one request."""

    ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    steps: list[Step] = field(default_factory=list)

    @property
    def num_accepted(self) -> int:
        return sum(step.num_accepted for step in self.steps)


def decode(engine: Engine, prompt: Sequence[int], **settings: object) -> Decoded:
    """Generation a request to its end."""
    result = Decoded()
    for step in engine.generate(request(prompt, **settings)):
        result.ids += step.token_ids
        result.steps.append(step)
        result.finish_reason = step.finish_reason
    return result


def request(
    prompt: Sequence[int],
    *,
    max_new_tokens: int = 16,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    stream: int = 0,
    eos_token_ids: Iterable[int] = (),
    repetition_penalty: float = 1.0,
    **others: object,
) -> Request:
    """A Request from plain arguments, those of the oracle."""
    warping = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    length = {"prompt_length": len(prompt), "max_length": len(prompt) + max_new_tokens}
    return Request(
        prompt_ids=list(prompt),
        sampling=SamplingSettings(seed=seed, stream=stream),
        processing=ProcessingSettings(
            **warping, **length, eos_token_ids=tuple(eos_token_ids), repetition_penalty=repetition_penalty
        ),
        **others,
    )
