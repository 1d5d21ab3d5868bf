"""An interrupt, an error or a consumer that leaves, at any point: the others go on exactly, and nothing is left behind.

"At any point" is meant literally: interrupts are planted at every kind of place in a cycle, before and after what is
done there, and besides let in by signals at random moments.
"""

from __future__ import annotations

import gc
import random
import signal
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import slipstream
from doubles import Scripted, configured, decode, random_tree, request, tree_of
from engine.test_threads import traces
from families import build, prompt_ids
from methods.learned import learned, save_artefacts
from oracle import oracle_generate
from slipstream.core.logits import LogitsPipeline
from slipstream.core.rules import CoupledRule
from slipstream.drafting.base import Drafter
from slipstream.drafting.tree import TreeDrafting
from slipstream.engine import cycle
from slipstream.engine.cycle import Decoding
from slipstream.engine.engine import Engine
from slipstream.engine.kept import KeptText, KeptTexts
from slipstream.engine.sequence import TokenSequence
from slipstream.target.cache import KVCache, SlotLayer
from slipstream.target.features import Features
from slipstream.target.target import Target

PROMPTS = [prompt_ids(12, seed=1), prompt_ids(15, seed=2)]
NUM_TOKENS = 12
SEEDED = {"temperature": 1.0, "seed": 5, "max_new_tokens": NUM_TOKENS}
METHODS = ["eagle2", "draft-model-dynamic", "layer-skip-dynamic", "hydra-dynamic"]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    built = build("llama", num_hidden_layers=3)
    built(torch.tensor([[1]]), output_hidden_states=True)  # transformers' own hooks for that stay once they are there
    return built


@pytest.fixture(scope="module")
def target(model) -> Target:
    return Target(model)


@pytest.fixture(scope="module")
def drafter(target, tmp_path_factory) -> Callable[[str], Drafter]:
    folder = tmp_path_factory.mktemp("artefacts")
    save_artefacts(target, folder)
    return lambda name: learned(name, target, folder) if not name.startswith("layer") else configured(name, target)


@pytest.fixture(scope="module")
def expected(model) -> list[list[int]]:
    return [oracle_generate(model, prompt, **SEEDED) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def states(model, expected) -> dict[tuple[int, ...], torch.Tensor]:
    """The whole texts, and their last hidden states."""
    texts = [[*prompt, *answer] for prompt, answer in zip(PROMPTS, expected, strict=True)]
    found = [model(torch.tensor([text]), output_hidden_states=True).hidden_states[-1][0] for text in texts]
    return {tuple(text): one.detach() for text, one in zip(texts, found, strict=True)}


@pytest.fixture(autouse=True)
def nothing_left(model) -> Iterator[None]:
    """No thread, no hook and no patch outlives a test."""
    threads, before = _threads(), traces(model)
    yield
    assert _threads() == threads
    assert traces(model) == before


def _threads() -> set[threading.Thread]:
    return {one for one in threading.enumerate() if one.name != "tqdm_monitor"}  # comes with the first progress bar


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many of the caches made since are alive, of targets, draft models and heads together."""
    made: list[weakref.ref[KVCache]] = []
    right = KVCache.__init__

    def init(self: KVCache, *args: Any, **kwargs: Any) -> None:
        right(self, *args, **kwargs)
        made.append(weakref.ref(self))

    monkeypatch.setattr(KVCache, "__init__", init)

    def alive() -> int:
        gc.collect()
        return sum(one() is not None for one in made)

    return alive


# where an interrupt strikes: the owner and the name of what is being called
PLACES: dict[str, tuple[Any, str]] = {
    "propose": (TreeDrafting, "propose"),
    "visibility": (cycle, "ancestor_mask"),
    "pass begins": (KVCache, "begin"),
    "layer written": (SlotLayer, "update"),
    "pass": (Target, "forward"),
    "processing": (LogitsPipeline, "process"),
    "choice": (CoupledRule, "choose"),
    "walk": (cycle, "walk"),
    "copy": (cycle, "read_walk"),
    "cut": (TokenSequence, "cut"),
    "commit": (KVCache, "commit"),
    "rows moved": (SlotLayer, "move"),
    "pipeline told": (LogitsPipeline, "commit"),
    "drafter told": (TreeDrafting, "observe"),
    "cycle": (Decoding, "step"),
    "prompt": (Decoding, "_prefill"),
    "recall": (Decoding, "_recall"),
    "start": (Drafter, "start"),
    "text kept": (Decoding, "text_to_keep"),
    "text put": (KeptTexts, "put"),
    "text taken": (KeptTexts, "take"),
}


@contextmanager
def striking(place: str, count: int, error: type[BaseException], *, after: bool) -> Iterator[list[int]]:
    """Raise at the `count`-th call, once; before what is called or after it. Yields the calls that were made."""
    owner, name = PLACES[place]
    calls: list[int] = []

    def strike(right: Callable[..., Any]) -> Callable[..., Any]:
        def struck(*args: Any, **kwargs: Any) -> Any:
            calls.append(len(calls))
            strikes = len(calls) == count
            if strikes and not after:
                raise error("struck")
            result = right(*args, **kwargs)
            if strikes:
                raise error("struck")
            return result

        return struck

    with pytest.MonkeyPatch.context() as patch:
        owners = [owner, *_subclasses(owner)] if isinstance(owner, type) else [owner]
        for one in owners:
            if name in vars(one):
                patch.setattr(one, name, strike(vars(one)[name]))
        yield calls


def _subclasses(owner: type) -> list[type]:
    return [one for direct in owner.__subclasses__() for one in (direct, *_subclasses(direct))]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("place", PLACES)
def test_an_interrupt_at_any_place_leaves_the_others_and_what_is_kept_exact(
    place, after, target, states, expected, caches
):
    """A scripted tree, whose accepted nodes have to be moved; features are kept, so that they must be right too."""
    engine = Engine(target, Known(states))
    other = engine.generate(request(PROMPTS[0], **SEEDED))
    found = list(next(other).token_ids)
    decode(engine, PROMPTS[1][:9], max_new_tokens=2)  # so that there is something to recall
    count = {"layer written": 11, "pass begins": 4, "pass": 4, "commit": 4, "rows moved": 2}.get(place, 1)
    with striking(place, count, KeyboardInterrupt, after=after) as calls:
        with suppress(KeyboardInterrupt):
            for step in engine.generate(request(PROMPTS[1], **SEEDED)):
                del step
        assert len(calls) >= count, "nothing was struck"
    for step in other:
        found.extend(step.token_ids)
    assert found == expected[0]
    for place_of_prompt in (1, 0, 1):
        assert decode(engine, PROMPTS[place_of_prompt], **SEEDED).ids == expected[place_of_prompt]
    del other
    assert caches() <= 1


class Known(Scripted):
    """Drafts from the true text of either prompt, in wild order, by the skeleton of drafters with a model."""

    def __init__(self, states: dict[tuple[int, ...], torch.Tensor]) -> None:
        """states: of whole texts, the last hidden states."""
        super().__init__(random_tree)
        self.features, self.states = Features(last_hidden=True), states

    def start(self, generation):
        return _Known(self, generation)


class _Known(TreeDrafting):
    def __init__(self, drafter: Known, generation: Any) -> None:
        self._drafter, self._generation, self._seen = drafter, generation, 0

    def propose(self):
        tokens = self._generation.tokens
        text = next((list(one) for one in self._drafter.states if list(one[: len(tokens)]) == tokens), tokens)
        return tree_of(random_tree(self._generation, text[len(tokens) :]))

    def observe(self, observed):
        """Every token in order, with its own features."""
        tokens = self._generation.tokens
        end = self._seen + len(observed.tokens)
        assert list(observed.tokens) == tokens[self._seen : end]
        for text, states in self._drafter.states.items():
            if list(text[:end]) == tokens[:end]:
                torch.testing.assert_close(observed.features, states[self._seen : end], rtol=0, atol=1e-9)
        self._seen = end

    def end_cycle(self, seconds):
        pass


@pytest.mark.parametrize("place", ["propose", "rows moved", "cycle"])
@pytest.mark.parametrize("name", METHODS)
def test_every_kind_of_drafter_is_struck(name, place, target, drafter, expected, caches):
    engine = Engine(target, drafter(name))
    with striking(place, 2, KeyboardInterrupt, after=True), suppress(KeyboardInterrupt):
        decode(engine, PROMPTS[1], **SEEDED)
    assert decode(engine, PROMPTS[1], **SEEDED).ids == expected[1]
    assert decode(engine, PROMPTS[0], **SEEDED).ids == expected[0]
    assert caches() <= 1


def note(steps: dict[int, Any], found: dict[int, list[Any]]) -> None:
    for number, step in steps.items():
        found[number].append(step)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("place", ["propose", "layer written", "choice", "rows moved", "cycle", "prompt", "start"])
def test_in_step_an_interrupt_ends_the_sequence_under_way_and_loses_no_step(
    place, error, target, states, expected, caches
):
    engine = Engine(target, Known(states), prefill_chunk=6)
    numbers = [engine.add(request(prompt, **SEEDED)) for prompt in (*PROMPTS, PROMPTS[0])]
    found: dict[int, list[Any]] = defaultdict(list)
    raised = 0
    with striking(place, 2, error, after=True):
        while engine._sequences or engine._steps:
            try:
                note(engine.step(), found)
            except KeyboardInterrupt:
                raised += 1
    assert raised == (error is KeyboardInterrupt)
    ended = [number for number in numbers if found[number][-1].finish_reason == "error"]
    assert len(ended) == 1
    assert isinstance(found[ended[0]][-1].error, error)
    for number, answer in zip(numbers, [*expected, expected[0]], strict=True):
        ids = [token for step in found[number] for token in step.token_ids]
        assert ids == answer[: len(ids)]
        assert number in ended or ids == answer
    found.clear()
    assert decode(engine, PROMPTS[0], **SEEDED).ids == expected[0]
    assert caches() <= 1


# -- consumers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [0, 1, 3])
@pytest.mark.parametrize("how", ["closed", "forgotten", "failed"])
def test_a_stream_that_is_left_alone_half_way(how, num_steps, target, states, expected, caches):
    """Closed by its consumer, collected as garbage, or left by an exception."""
    model = slipstream.Model(target, Known(states))
    settings = {**SEEDED, "eos_token_id": ()}

    def consume() -> None:
        stream = model.stream(PROMPTS[1], **settings)
        for _ in range(num_steps):
            next(stream)
        if how == "closed":
            stream.close()
        elif how == "failed":
            raise RuntimeError("the consumer fails")
        else:
            del stream

    other = model.stream(PROMPTS[0], **settings)
    found = list(next(other).token_ids)
    with suppress(RuntimeError):
        consume()
    for step in other:
        found.extend(step.token_ids)
    assert found == expected[0]
    for place in (1, 0):
        assert model.generate(PROMPTS[place], **settings).token_ids == expected[place]
    del other
    assert caches() == 1


def test_settings_that_fail_within_a_text_leave_the_others_exact(target, states, expected, caches):
    """No token is left after some: an error of the request's own logits settings."""
    model = slipstream.Model(target, Known(states))
    banned = tuple(token for token in range(64) if token not in PROMPTS[1])
    settings = {**SEEDED, "eos_token_id": ()}
    other = model.stream(PROMPTS[0], **settings)
    found = list(next(other).token_ids)
    for _ in range(2):
        with pytest.raises(slipstream.InputError, match="rule out every token"):
            model.generate(PROMPTS[1], **settings, suppress_tokens=banned, no_repeat_ngram_size=1)
        found.extend(next(other).token_ids)
    for step in other:
        found.extend(step.token_ids)
    assert found == expected[0]
    assert model.generate(PROMPTS[1], **settings).token_ids == expected[1]
    del other
    assert caches() <= 1


# -- at random moments -------------------------------------------------------------------------------------------------


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """KeyboardInterrupt in this thread after so long, at whatever it does then."""

    def strike(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, strike)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)


needs_signals = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timers")


@needs_signals
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # one that strikes within a finaliser
@pytest.mark.parametrize("name", ["eagle2", "layer-skip-dynamic"])
def test_a_stream_struck_at_random_moments_leaves_what_is_kept_exact(name, target, drafter, expected, caches):
    engine, rng, struck, whole_s = Engine(target, drafter(name)), random.Random(0), 0, 0.1
    for _ in range(30):
        try:
            with alarm(rng.uniform(0.02, 0.9) * whole_s):
                decode(engine, PROMPTS[rng.randrange(2)], **SEEDED)
        except KeyboardInterrupt:
            struck += 1
        place, began = rng.randrange(2), time.perf_counter()
        assert decode(engine, PROMPTS[place], **SEEDED).ids == expected[place]
        whole_s = time.perf_counter() - began
        if struck == 5:
            break
    assert struck > 0
    assert caches() <= 1


@needs_signals
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_sequences_struck_at_random_moments_lose_no_token(target, states, expected, caches):
    engine, rng, struck = Engine(target, Known(states), prefill_chunk=6), random.Random(0), 0
    for _ in range(4):
        numbers = [engine.add(request(prompt, **SEEDED)) for prompt in (*PROMPTS, *PROMPTS)]
        found: dict[int, list[Any]] = defaultdict(list)
        while engine._sequences or engine._steps:
            steps: dict[int, Any] = {}
            try:
                with alarm(rng.uniform(0.001, 0.04)):
                    while engine._sequences and not steps:
                        steps = engine.step()
            except KeyboardInterrupt:
                struck += 1
            note(steps or engine.step(), found)
        del steps  # an error holds the cache
        for number, answer in zip(numbers, [*expected, *expected], strict=True):
            ids = [token for step in found[number] for token in step.token_ids]
            assert ids == answer[: len(ids)]
            assert ids == answer or found[number][-1].finish_reason == "error"
        found.clear()
    assert struck > 0
    assert decode(engine, PROMPTS[0], **SEEDED).ids == expected[0]
    assert caches() <= 1


def test_an_interrupt_while_another_is_dealt_with_lets_no_broken_sequence_go_on(target, states, expected, monkeypatch):
    engine = Engine(target, Known(states))
    numbers = [engine.add(request(prompt, **SEEDED)) for prompt in PROMPTS]
    engine.step()

    def strike(error: BaseException) -> None:
        raise KeyboardInterrupt

    with striking("rows moved", 2, KeyboardInterrupt, after=True), monkeypatch.context() as patch:
        patch.setattr("slipstream.engine.engine.Step.failed", strike)
        for _ in range(NUM_TOKENS):
            with suppress(KeyboardInterrupt):
                engine.step()
    assert set(engine._sequences) & set(numbers)
    errors = []
    while engine._sequences:
        errors += [step.error for step in engine.step().values() if step.error is not None]
    (error,) = errors
    assert "interrupted within a pass" in str(error)
    assert [decode(engine, prompt, **SEEDED).ids for prompt in PROMPTS] == expected


def test_a_text_of_an_interrupted_pass_is_never_kept(target, states):
    """Not even where the interrupt came when all was done but the note that it was."""
    engine = Engine(target, Known(states))
    kept: list[KeptText] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeptTexts, "put", lambda self, text: kept.append(text))
        for after in (False, True):
            with striking("cycle", 2, KeyboardInterrupt, after=after), suppress(KeyboardInterrupt):
                decode(engine, PROMPTS[1], **SEEDED)
    assert kept == []
