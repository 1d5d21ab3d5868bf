"""Requests that are added to an engine and advanced together, pass by pass."""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from dataclasses import replace

import pytest

from doubles import CONFIGURATIONS, Scripted, configured, decode, nothing, random_tree, request
from families import CONTEXT, prompt_ids
from oracle import oracle_generate
from slipstream.core.logits import ProcessingSettings
from slipstream.engine.engine import Engine
from slipstream.engine.sequence import Request, Step
from slipstream.errors import ContextLengthError, InputError
from slipstream.methods.plain import PlainDrafter
from slipstream.target.target import Target

PROMPTS = [prompt_ids(9 + 4 * place, seed=place) for place in range(4)]
NUM_TOKENS = 8
SEEDED = {"temperature": 1.0, "seed": 5}


@pytest.fixture(scope="module")
def model(family_model):
    return family_model("llama")


@pytest.fixture(scope="module")
def target(model):
    return Target(model)


@pytest.fixture(scope="module")
def expected(model):
    return [oracle_generate(model, prompt, max_new_tokens=NUM_TOKENS, **SEEDED) for prompt in PROMPTS]


def asked(prompt: list[int], num_tokens: int = NUM_TOKENS, **more: object) -> Request:
    return request(prompt, max_new_tokens=num_tokens, **SEEDED, **more)


def run(engine: Engine, most_calls: int = 200) -> dict[int, list[Step]]:
    """Step until nobody is left."""
    found: dict[int, list[Step]] = defaultdict(list)
    for _ in range(most_calls):
        for number, step in engine.step().items():
            found[number].append(step)
        if not engine._sequences:
            return found
    raise AssertionError("the sequences do not end")


def ids(steps: list[Step]) -> list[int]:
    return [token for step in steps for token in step.token_ids]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_together_each_says_what_it_says_alone(name, target, expected):
    engine = Engine(target, configured(name, target), prefill_chunk=8)
    numbers = [engine.add(asked(prompt)) for prompt in PROMPTS]
    found = run(engine)
    assert [ids(found[number]) for number in numbers] == expected
    for steps in found.values():
        assert [step.finish_reason for step in steps] == [None] * (len(steps) - 1) + ["length"]


def test_sequences_come_and_go_while_others_go_on(target, expected):
    engine = Engine(target, PlainDrafter())
    found: dict[int, list[Step]] = defaultdict(list)
    waiting = list(PROMPTS)
    numbers = []
    while waiting or engine._sequences:
        if waiting:
            numbers.append(engine.add(asked(waiting.pop(0))))
        for _ in range(3):
            for number, step in engine.step().items():
                found[number].append(step)
    assert [ids(found[number]) for number in numbers] == expected
    assert len(set(numbers)) == len(numbers)
    assert engine.step() == {}
    assert not engine._decodings


def test_every_call_gives_each_sequence_one_cycle_in_the_order_of_adding(target):
    engine = Engine(target, PlainDrafter())
    numbers = [engine.add(asked(prompt)) for prompt in PROMPTS]
    assert engine.step() == {}, "prompts are run first"
    for _ in range(NUM_TOKENS):
        assert list(engine.step()) == numbers
    assert engine.step() == {}


def test_a_long_prompt_does_not_hold_up_the_others(target, expected, model):
    long = prompt_ids(50, seed=9)
    engine = Engine(target, PlainDrafter(), prefill_chunk=10)
    first = engine.add(asked(PROMPTS[0], 30))
    assert engine.step() == {}
    second, third = engine.add(asked(long, 3)), engine.add(asked(PROMPTS[0], 3))
    calls = [set(engine.step()) for _ in range(9)]
    assert all(first in call for call in calls)
    assert [second in call for call in calls] == [False] * 5 + [True] * 3 + [False]  # 49 tokens in chunks of 10
    assert [third in call for call in calls] == [False] * 6 + [True] * 3, "one chunk goes with the 9 that were left"


def test_short_prompts_share_a_call(target):
    engine = Engine(target, PlainDrafter(), prefill_chunk=30)
    numbers = [engine.add(asked(prompt)) for prompt in PROMPTS]  # 8, 12, 16 and 20 tokens to run
    calls = [set(engine.step()) for _ in range(4)]
    assert calls == [set(), set(numbers[:2]), set(numbers[:3]), set(numbers)]


def test_what_was_kept_takes_no_pass(target):
    engine = Engine(target, PlainDrafter(), prefill_chunk=10)
    answer = decode(engine, prompt_ids(50, seed=9), max_new_tokens=4).ids
    number = engine.add(request([*prompt_ids(50, seed=9), *answer], max_new_tokens=2))
    assert list(engine.step()) == [number]


# -- errors ------------------------------------------------------------------------------------------------------------


def test_a_bad_request_is_refused_when_it_is_added(target):
    engine = Engine(target, PlainDrafter())
    with pytest.raises(InputError, match="the prompt is empty"):
        engine.add(replace(request([5]), prompt_ids=[]))
    with pytest.raises(ContextLengthError):
        engine.add(request(prompt_ids(CONTEXT)))
    assert engine.step() == {}


def test_an_error_ends_its_own_sequence_and_no_other(target, expected):
    """A drafter that fails in one text, and settings that leave another no token."""
    poor = PROMPTS[1]

    def fail_in_one(generation, ahead):
        if generation.tokens[: len(poor)] == poor and len(generation.tokens) > len(poor) + 2:
            raise RuntimeError("no draft")
        return random_tree(generation, ahead)

    engine = Engine(target, Scripted(fail_in_one))
    numbers = [engine.add(asked(prompt)) for prompt in PROMPTS]
    length = {"prompt_length": 3, "max_length": 9}
    bare = engine.add(
        Request(prompt_ids=[5, 6, 7], processing=ProcessingSettings(**length, suppress_tokens=tuple(range(64))))
    )
    found = run(engine)
    assert [ids(found[number]) for number in (numbers[0], *numbers[2:])] == [expected[0], *expected[2:]]
    struck, empty = found[numbers[1]], found[bare]
    assert ids(struck) == expected[1][: len(ids(struck))]
    assert struck[-1].finish_reason == empty[-1].finish_reason == "error"
    assert struck[-1].token_ids == empty[-1].token_ids == ()
    assert isinstance(struck[-1].error, RuntimeError)
    assert isinstance(empty[-1].error, InputError)
    assert decode(engine, poor[:9], max_new_tokens=2).ids, "still usable"


def test_an_error_at_the_very_beginning_is_the_sequences_own(target, expected, monkeypatch):
    engine = Engine(target, PlainDrafter())
    right = engine.drafter.start

    def start(generation):
        if generation.tokens == PROMPTS[0]:
            raise MemoryError
        return right(generation)

    monkeypatch.setattr(engine.drafter, "start", start)
    numbers = [engine.add(asked(prompt)) for prompt in PROMPTS[:2]]
    found = run(engine)
    assert isinstance(found[numbers[0]][0].error, MemoryError)
    assert ids(found[numbers[1]]) == expected[1]


def test_a_sequence_can_be_removed_at_any_time(target, expected):
    for num_calls in range(6):
        engine = Engine(target, PlainDrafter(), prefill_chunk=8)
        numbers = [engine.add(asked(prompt)) for prompt in PROMPTS[:3]]
        found: dict[int, list[Step]] = defaultdict(list)
        for _ in range(num_calls):
            for number, step in engine.step().items():
                found[number].append(step)
        assert engine.remove(numbers[1])
        assert not engine.remove(numbers[1])
        before = len(found[numbers[1]])
        for number, steps in run(engine).items():
            found[number] += steps
        assert len(found[numbers[1]]) == before
        assert [ids(found[numbers[0]]), ids(found[numbers[2]])] == [expected[0], expected[2]]
        assert not engine.remove(numbers[0])
        assert not engine.remove(99)


def test_a_removed_sequence_leaves_a_text_to_go_on_from(target):
    engine = Engine(target, PlainDrafter())
    number = engine.add(asked(PROMPTS[3]))
    engine.step()
    engine.step()
    assert engine.remove(number)
    again = engine.add(asked(PROMPTS[3]))
    assert list(engine.step()) == [again], "all of the prompt was kept"


# -- who advances whom -------------------------------------------------------------------------------------------------


def test_generate_advances_its_own_request_alone(target, expected):
    engine = Engine(target, PlainDrafter())
    number = engine.add(asked(PROMPTS[0]))
    assert ids(decode(engine, PROMPTS[1], max_new_tokens=NUM_TOKENS, **SEEDED).steps) == expected[1]
    assert engine.step() == {}, "its prompt had not been run yet"
    stream = engine.generate(asked(PROMPTS[2]))
    found = list(next(stream).token_ids)
    steps = [engine.step()[number] for _ in range(NUM_TOKENS)]
    assert ids(steps) == expected[0]
    assert [*found, *ids(list(stream))] == expected[2]


def test_one_thread_steps_while_others_add_remove_and_generate(target, expected):
    engine = Engine(target, configured("layer-skip-dynamic", target), prefill_chunk=8)
    found: dict[int, list[Step]] = defaultdict(list)
    numbers: dict[int, int] = {}
    generated: list[list[int]] = []
    failures: list[BaseException] = []
    over = threading.Event()

    def serve() -> None:
        while not over.is_set() or engine._sequences:
            for number, step in engine.step().items():
                found[number].append(step)

    def ask(place: int) -> None:
        try:
            numbers[place] = engine.add(asked(PROMPTS[place]))
            engine.remove(engine.add(asked(PROMPTS[place], 40)))
            generated.append(decode(engine, PROMPTS[place], max_new_tokens=NUM_TOKENS, **SEEDED).ids)
        except BaseException as error:
            failures.append(error)

    server = threading.Thread(target=serve)
    threads = [threading.Thread(target=ask, args=[place]) for place in range(4)]
    for thread in (server, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    server.join()
    assert not failures
    assert sorted(generated) == sorted(expected)
    assert [ids(found[numbers[place]]) for place in range(4)] == expected


def test_two_threads_that_step_hand_out_every_step_once(target, expected):
    engine = Engine(target, PlainDrafter())
    numbers = [engine.add(asked(prompt)) for prompt in PROMPTS]
    handed: list[tuple[int, Step]] = []

    def serve() -> None:
        while engine._sequences:
            handed.extend(engine.step().items())

    threads = [threading.Thread(target=serve) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handed.extend(engine.step().items())
    assert sorted(number for number, _ in handed) == sorted(numbers * NUM_TOKENS)


def test_streams_of_one_engine_and_of_another_are_apart(target, expected):
    engines = [Engine(target, Scripted(nothing)), Engine(target, PlainDrafter())]
    numbers = [[engine.add(asked(prompt)) for prompt in PROMPTS[:2]] for engine in engines]
    found = [defaultdict(list), defaultdict(list)]
    for _ in range(NUM_TOKENS + 1):
        for steps, engine in zip(found, engines, strict=True):
            for number, step in engine.step().items():
                steps[number].append(step)
    assert [[ids(steps[one]) for one in some] for steps, some in zip(found, numbers, strict=True)] == [expected[:2]] * 2
    assert list(itertools.chain(*(engine.step() for engine in engines))) == []
