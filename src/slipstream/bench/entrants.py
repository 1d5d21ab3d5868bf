"""What answers in a benchmark: our methods and transformers' peers, over one target, behind one question.

Peers in processes of their own answer behind the same question: `slipstream.bench.processes`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from slipstream.bench.memory import Peak, peak_memory
from slipstream.bench.peers import PEERS, Peer, peer
from slipstream.bench.settings import PLAIN, BenchSettings, EntrantSpec
from slipstream.bench.watching import Cycle, WatchedDrafter
from slipstream.errors import InputError
from slipstream.methods.registry import METHODS, packaged_artefact
from slipstream.model import Model
from slipstream.output import Stats
from slipstream.runtime.timing import synchronize


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer to one prompt."""

    token_ids: list[int]
    stats: Stats
    """Of a peer: tokens, passes and their histogram, and the time until its first token; no other times by part."""
    total_s: float
    """Wall time, the device idle before and after; measured alike for all."""
    memory: Peak
    cycles: list[Cycle]
    """The verified trees; empty for peers."""


class Answering(Protocol):
    """One row of the tables, ready to answer."""

    spec: EntrantSpec
    name: str

    @property
    def is_peer(self) -> bool:
        """Whether it is other software."""

    def answer(self, prompt_ids: Sequence[int], temperature: float, sample: int, max_new_tokens: int) -> Reply:
        """Answer a prompt of token ids, timed. sample: which of several answers at this temperature."""


class Entrant:
    """One that answers in this process."""

    def __init__(self, spec: EntrantSpec, settings: BenchSettings, answering: Model | Peer) -> None:
        self.spec, self.name = spec, spec.name
        self._settings, self._answering = settings, answering
        self._device = answering.target.device
        self._watched: WatchedDrafter | None = None
        if isinstance(answering, Model):  # the same drafter, its trees kept
            self._watched = WatchedDrafter(answering.drafter)
            self._answering = Model(answering.target, self._watched, answering.tokenizer, keep=0)  # time whole prompts

    @property
    def is_peer(self) -> bool:
        return self.spec.kind == "peer"

    def answer(self, prompt_ids: Sequence[int], temperature: float, sample: int, max_new_tokens: int) -> Reply:
        """Answer a prompt of token ids, timed. sample: which of several answers at this temperature.

        Where passes are compiled, an answer beside which that was done is given again.
        """
        executor = self._answering.target.executor
        return executor.settled(lambda: self._answer(prompt_ids, temperature, sample, max_new_tokens))

    def _answer(self, prompt_ids: Sequence[int], temperature: float, sample: int, max_new_tokens: int) -> Reply:
        synchronize(self._device)
        with peak_memory(self._device) as memory:
            began = time.perf_counter()
            token_ids, stats = self._run(list(prompt_ids), temperature, sample, max_new_tokens)
            synchronize(self._device)
            total_s = time.perf_counter() - began
        cycles = [] if self._watched is None else self._watched.take()
        return Reply(token_ids=token_ids, stats=stats, total_s=total_s, memory=memory, cycles=cycles)

    def _run(self, prompt_ids: list[int], temperature: float, sample: int, budget: int) -> tuple[list[int], Stats]:
        settings = self._settings
        if isinstance(self._answering, Peer):
            found = self._answering.generate(
                prompt_ids,
                max_new_tokens=budget,
                temperature=temperature,
                seed=settings.seed + sample,
                top_p=1.0 if settings.top_p is None else settings.top_p,
                top_k=0,
            )
            stats = Stats(
                num_tokens=len(found.token_ids),
                num_cycles=found.num_passes,
                accept_lengths=list(found.accept_lengths),
                prefill_s=found.prefill_s,
            )
            return found.token_ids, stats
        output = self._answering.generate(
            prompt_ids,
            max_new_tokens=budget,
            temperature=temperature,
            top_k=0,
            top_p=1.0 if settings.top_p is None else settings.top_p,
            seed=settings.seed if temperature else None,
            stream_id=sample,
            verification=settings.verification,
        )
        return output.token_ids, output.stats


def load_entrants(
    plain: Model,
    settings: BenchSettings,
    left_out: Callable[[str, str], None] | None = None,
    start: Callable[[EntrantSpec], Answering] | None = None,
) -> dict[str, Answering]:
    """All entrants over the target of `plain`, by name, in the order of the settings.

    left_out: told name and reason of each peer that does not apply to this target; None: it is an error.
    start: makes those that run in processes of their own.
    Raises InputError for a method of ours, or a process, that cannot be loaded.
    """
    found: dict[str, Answering] = {}
    for spec in settings.entrants:
        if spec.process:
            assert start is not None
            found[spec.name] = start(spec)
            continue
        try:
            found[spec.name] = Entrant(spec, settings, _load(spec, plain))
        except InputError as error:
            if spec.kind == "ours" or left_out is None:
                raise InputError(f"{spec.name}: {error}") from error
            left_out(spec.name, str(error))
    return found


def _load(spec: EntrantSpec, plain: Model) -> Model | Peer:
    if spec.kind == "peer":
        return load_peer(spec.method, spec.options, plain)
    if spec.name == PLAIN:
        return plain
    return plain.with_method(spec.method, **spec.options)


def load_peer(name: str, options: Mapping[str, Any], model: Model) -> Peer:
    """One of `PEERS` on a model's target, by default with the draft model that ships for it. Raises as `peer` does."""
    options = dict(options)
    if PEERS[name].option == "draft":
        options.setdefault("draft", packaged_artefact("draft-model", model.target.hash))
    return peer(name, model.target, model.tokenizer, **options)


class ExactEntrants:
    """The entrants in float64, loaded when an answer that differs first asks for them."""

    def __init__(self, load_plain: Callable[[], Model], settings: BenchSettings) -> None:
        """load_plain: loads the target in float64 with plain decoding."""
        self._load_plain, self._settings = load_plain, settings
        self._plain: Model | None = None
        self._loaded: dict[str, Entrant] = {}

    def __getitem__(self, name: str) -> Entrant:
        if self._plain is None:
            self._plain = self._load_plain()
        if name not in self._loaded:
            spec = next(one for one in self._settings.entrants if one.name == name)
            self._loaded[name] = Entrant(spec, self._settings, _load(spec, self._plain))
        return self._loaded[name]


def default_entrants(target_hash: str, drafts: Mapping[str, str], peers: bool) -> Iterator[EntrantSpec]:
    """Every method that can run: those that need nothing, those with an artefact given, those whose shipped one fits.

    drafts: method -> its artefact. peers: transformers' own methods too, the assisted one with the draft model. Two are
    entered only by name: early exit, which runs on most models but is made for those trained to leave early
    (LayerSkip), and compiled passes, which take minutes to compile.
    """
    for name, method in METHODS.items():
        options = {"draft": drafts[name]} if name in drafts else {}
        if method.artefact is None or options or packaged_artefact(name, target_hash) is not None:
            yield EntrantSpec(name=name, kind="ours", method=name, options=options)
    for name, peer_spec in PEERS.items() if peers else ():
        if peer_spec.only_if_named:
            continue
        options = {"draft": drafts["draft-model"]} if peer_spec.option == "draft" and "draft-model" in drafts else {}
        if peer_spec.option != "draft" or options or packaged_artefact("draft-model", target_hash) is not None:
            yield EntrantSpec(name=name, kind="peer", method=name, options=options)
