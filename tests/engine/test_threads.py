"""Generations beside each other, in one thread or in several, give what each gives alone; and nobody else is disturbed.

Threads change places ten thousand times a second here, so that passes, drafts and hooks of one fall between those of
another.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch import nn
from transformers import PreTrainedModel

from doubles import CONFIGURATIONS, configured, decode, request
from families import ORIGINAL_CONTEXT, build, prompt_ids, rope, transformers_greedy
from methods.learned import LEARNED, learned, save_artefacts
from pass_sizes import both_sizes
from slipstream.drafting.base import Drafter
from slipstream.engine.engine import Engine
from slipstream.methods.registry import build_drafter
from slipstream.target.target import Target

ADAPTIVE = {"layer-skip-adaptive": ("layer-skip", {"skip_set": "adaptive", "overhead": 0.3, "trial_rows": 16})}
SIZED = {  # by cost, so that threads share what is measured and learnt
    "layer-skip-auto": ("layer-skip", {"width": 2, "depth": 2}),
    "eagle2-auto": ("eagle2", {"width": 4, "depth": 2, "total": "auto:8"}),
}
EVERY = (*CONFIGURATIONS, *LEARNED, *ADAPTIVE, *SIZED)
NUM_THREADS = 4
NUM_TOKENS = 12
HOW = [{"temperature": 0.0}, {"temperature": 1.0, "seed": 5}]


@pytest.fixture(autouse=True)
def restless() -> Iterator[None]:
    """Threads that change places as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return build("llama", num_hidden_layers=3)


@pytest.fixture(scope="module")
def engine(model, tmp_path_factory) -> Callable[[str], Engine]:
    """An engine with a target of its own, all on one model."""
    folder = tmp_path_factory.mktemp("artefacts")
    save_artefacts(Target(model), folder)

    def made(name: str) -> Engine:
        target = Target(model)
        return Engine(target, _drafter(name, target))

    def _drafter(name: str, target: Target) -> Drafter:
        if name in CONFIGURATIONS:
            return configured(name, target)
        if name in LEARNED:
            return learned(name, target, folder)
        method, options = {**ADAPTIVE, **SIZED}[name]
        artefact = {} if method == "layer-skip" else {"draft": folder / "eagle"}
        return build_drafter(method, target, {**options, **artefact})

    return made


@pytest.fixture(scope="module")
def alone(engine) -> Callable[[int], list[list[int]]]:
    """What plain decoding says to each of the thread's prompts, each way to choose tokens; every method says it too."""
    known = {place: answers(engine("plain"), place) for place in range(NUM_THREADS)}
    return known.__getitem__


def at_once(calls: list[Callable[[], object]]) -> list[object]:
    """What each call returns, all begun at the same moment in a thread of its own. Raises what one raises."""
    begin = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> object:
        begin.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(run, call) for call in calls]]


def answers(engine: Engine, place: int, num_tokens: int = NUM_TOKENS) -> list[list[int]]:
    prompt = prompt_ids(9 + place, seed=place)
    return [decode(engine, prompt, max_new_tokens=num_tokens, **how).ids for how in HOW]


def traces(model: nn.Module) -> list[object]:
    """All that could be left on a model, or put there for a moment."""
    return [
        (sorted(one.__dict__), "forward" in one.__dict__, len(one._forward_hooks), len(one._forward_pre_hooks))
        for one in model.modules()
    ]


@both_sizes
@pytest.mark.parametrize("name", EVERY)
def test_threads_on_one_engine_say_what_each_says_alone(name, engine, alone):
    shared = engine(name)
    found = at_once([lambda place=place: answers(shared, place) for place in range(NUM_THREADS)])
    assert found == [alone(place) for place in range(NUM_THREADS)]


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(EVERY, 2)))
def test_two_methods_on_one_model_say_what_each_says_alone(one, other, engine, alone):
    engines = [engine(one), engine(other)]
    found = at_once([lambda place=place: answers(engines[place], place) for place in range(2)])
    assert found == [alone(0), alone(1)]


@pytest.mark.parametrize("name", ["layer-skip-dynamic", "layer-skip-adaptive", "eagle2", "hydra-dynamic"])
def test_transformers_own_generate_beside_them_is_not_disturbed(name, engine, alone, model):
    prompt = prompt_ids(9)
    expected = transformers_greedy(model, prompt, 40)
    shared, seen, over = engine(name), [], threading.Event()
    before = traces(model)

    def watch() -> None:
        while not over.is_set():
            seen.append(traces(model) == before)

    def foreign() -> list[list[int]]:
        return [transformers_greedy(model, prompt, 40) for _ in range(3)]

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        ours = [lambda place=place: answers(shared, place) for place in range(2)]
        *found, theirs = at_once([*ours, foreign])
    finally:
        over.set()
        watcher.join()
    assert found == [alone(0), alone(1)]
    assert theirs == [expected] * 3
    assert len(seen) > 10
    assert all(seen), "the model was touched"


def test_loading_a_method_disturbs_nobody(engine, model):
    """Sub-layers are found, and what they cost is measured, by passes of shadows."""
    prompt = prompt_ids(9)
    expected = transformers_greedy(model, prompt, 40)
    over = threading.Event()

    def foreign() -> list[list[int]]:
        found = []
        while not over.is_set():
            found.append(transformers_greedy(model, prompt, 40))
        return found

    def load() -> None:
        try:
            for name in ("layer-skip-adaptive", "layer-skip-auto", "eagle2-auto"):
                decode(engine(name), prompt, max_new_tokens=2)
        finally:
            over.set()

    theirs, _ = at_once([foreign, load])
    assert theirs
    assert all(one == expected for one in theirs)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_rope_that_follows_the_text_follows_each_threads_own(kind):
    """One text is within the original length, one beyond it: each has frequencies of its own."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0]} if kind == "longrope" else {}
    original = {"original_max_position_embeddings": ORIGINAL_CONTEXT} if kind == "longrope" else {}
    model = (
        build("phi3", sliding_window=None, rope_parameters=rope(kind, **factors, **original), **original)
        if kind == "longrope"
        else build("llama", max_position_embeddings=ORIGINAL_CONTEXT, rope_parameters=rope(kind, factor=4.0))
    )
    engine = Engine(Target(model), configured("layer-skip-dynamic", Target(model)))
    plain = Engine(Target(model), configured("plain", Target(model)))
    lengths = [8, ORIGINAL_CONTEXT + 9, 12, ORIGINAL_CONTEXT + 20]
    prompts = [prompt_ids(length, seed=length) for length in lengths]
    expected = [decode(plain, prompt, max_new_tokens=NUM_TOKENS).ids for prompt in prompts]
    foreign = transformers_greedy(model, prompts[0], NUM_TOKENS)
    calls = [lambda p=p: decode(engine, p, max_new_tokens=NUM_TOKENS).ids for p in prompts]
    *found, theirs = at_once([*calls, lambda: transformers_greedy(model, prompts[0], NUM_TOKENS)])
    assert found == expected
    assert theirs == foreign


# -- in one thread: taking turns, giving up, being struck --------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_streams_that_take_turns_say_what_each_says_alone(name, engine, alone):
    shared = engine(name)
    prompts = [prompt_ids(9 + place, seed=place) for place in range(3)]
    streams = [shared.generate(request(prompt, max_new_tokens=NUM_TOKENS, **HOW[1])) for prompt in prompts]
    abandoned = shared.generate(request(prompts[0], max_new_tokens=NUM_TOKENS))
    found: list[list[int]] = [[], [], []]
    next(abandoned)
    for steps in itertools.zip_longest(*streams):
        abandoned.close()
        for ids, step in zip(found, steps, strict=True):
            ids.extend(() if step is None else step.token_ids)
    assert found == [alone(place)[1] for place in range(3)]
    assert len(shared.kept) == 1, "of all these caches one is kept"


@pytest.mark.parametrize(
    "name", ["layer-skip-dynamic", "layer-skip-auto", "layer-skip-adaptive", "eagle2-auto", "medusa-dynamic"]
)
@pytest.mark.parametrize("struck", [3, 11, 19, 35])
def test_an_interrupt_in_any_pass_leaves_the_others_and_the_model_as_they_were(name, struck, engine, alone, model):
    """Ctrl-C within the `struck`-th call of a module that no method leaves out."""
    shared, before = engine(name), traces(model)
    prompts = [prompt_ids(9 + place, seed=place) for place in range(2)]
    other = shared.generate(request(prompts[0], max_new_tokens=NUM_TOKENS))
    found = list(next(other).token_ids)
    calls, running = 0, True

    def strike(*_: object) -> None:
        nonlocal calls
        calls += running
        if calls == struck:
            raise KeyboardInterrupt

    hook = model.model.norm.register_forward_hook(strike)
    try:
        for step in shared.generate(request(prompts[1], max_new_tokens=40)):
            del step
    except KeyboardInterrupt:
        pass
    finally:
        running = False
        hook.remove()
    assert traces(model) == before
    for step in other:
        found.extend(step.token_ids)
    assert found == alone(0)[0]
    assert answers(shared, 1) == alone(1)
    assert len(shared.kept) == 1
