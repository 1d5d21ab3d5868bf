"""A prompt that begins with the tokens of a kept text has the answer of a fresh engine, and only the rest is run."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from doubles import CONFIGURATIONS, Scripted, configured, decode, random_tree, request
from engine.test_threads import at_once
from families import build, prompt_ids
from methods.learned import LEARNED, learned, save_artefacts
from oracle import oracle_generate
from slipstream.drafting.base import Drafter
from slipstream.engine.cycle import Decoding
from slipstream.engine.engine import Engine
from slipstream.engine.kept import KeptText, KeptTexts
from slipstream.errors import InputError
from slipstream.methods.plain import PlainDrafter
from slipstream.target.cache import KVCache
from slipstream.target.features import Features
from slipstream.target.target import Target

EVERY = (*CONFIGURATIONS, *LEARNED)
FIRST = prompt_ids(18, seed=2)
NUM_TOKENS = 8
GREEDY, SEEDED = {"temperature": 0.0}, {"temperature": 1.0, "seed": 5}


@pytest.fixture(scope="module")
def target(family_model) -> Target:
    return Target(family_model("llama"))


@pytest.fixture(scope="module")
def drafter(target, tmp_path_factory) -> Callable[[str], Drafter]:
    folder = tmp_path_factory.mktemp("artefacts")
    save_artefacts(target, folder)
    return lambda name: learned(name, target, folder) if name in LEARNED else configured(name, target)


@pytest.fixture
def prefilled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every prefill pass, as they are run."""
    rows: list[int] = []
    right = Decoding._prefill

    def prefill(self: Decoding, first: int, end: int) -> None:
        rows.append(end - first)
        right(self, first, end)

    monkeypatch.setattr(Decoding, "_prefill", prefill)
    return rows


Conversation = list[tuple[list[int], list[int], int]]
"""Prompt, the answer that a fresh engine gives, and how many of the prompt's tokens need no pass."""


def conversation(model: Any, how: dict[str, Any]) -> Conversation:
    """Prompts that share all, much, little and nothing with the text before them."""
    turns: Conversation = []
    kept: list[int] = []

    def turn(prompt: list[int]) -> None:
        nonlocal kept
        answer = oracle_generate(model, prompt, max_new_tokens=NUM_TOKENS, **how)
        pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(kept, prompt[:-1], strict=False))
        turns.append((prompt, answer, len(list(pairs))))
        kept = [*prompt, *answer[:-1]]

    turn(FIRST)
    turn([*kept, 7, *prompt_ids(5, seed=3)])  # the next turn of a chat; the answer's last token was another
    turn([*kept, 9])
    turn(list(turns[-1][0]))  # the very same again
    turn(kept[:13])  # a beginning of the former text
    turn([*kept[:9], *prompt_ids(6, seed=4)])  # some of it
    turn([(kept[0] + 1) % 60 + 2, *prompt_ids(6, seed=5)])  # none of it
    turn(FIRST[:1])
    assert [shared for _, _, shared in turns][:6] == [0, 25, 38, 38, 12, 9]
    assert [shared for _, _, shared in turns][6:] == [0, 0]
    return turns


@pytest.fixture(scope="module")
def turns(target) -> dict[float, Conversation]:
    return {how["temperature"]: conversation(target.model, how) for how in (GREEDY, SEEDED)}


@pytest.mark.parametrize("how", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("name", EVERY)
def test_every_method_goes_on_from_what_is_kept(name, how, target, drafter, turns, prefilled):
    engine = Engine(target, drafter(name), prefill_chunk=8)
    for prompt, answer, shared in turns[how["temperature"]]:
        prefilled.clear()
        assert decode(engine, prompt, max_new_tokens=NUM_TOKENS, **how).ids == answer
        assert sum(prefilled) == len(prompt) - 1 - shared
        assert all(rows <= 8 for rows in prefilled)
        assert len(engine.kept) == 1


FAMILIES = ["llama", "gpt2", "gemma3", "deepseek_v3", "llama4", "llama4-temperature", "gpt_oss", "longrope"]


@pytest.mark.parametrize("name", [*FAMILIES, "dynamic-rope"])
def test_what_is_kept_is_what_a_fresh_prefill_would_hold(name, family_model, prefilled):
    """Nothing is kept where keys depend on the pass that they were made in."""
    model = family_model(name)
    target = Target(model)
    checked = []

    def check_then_draw(run, ahead):
        if target.family.may_cut_passes:
            theirs = DynamicCache()  # without a config it keeps windowed layers whole
            model(torch.tensor([run.tokens[:-1]]), past_key_values=theirs)
            for mine, their in zip(run.cache.layers, theirs.layers, strict=True):
                torch.testing.assert_close(mine.keys[:, :, : run.length], their.keys, rtol=0, atol=1e-9)
                torch.testing.assert_close(mine.values[:, :, : run.length], their.values, rtol=0, atol=1e-9)
        assert run.cache.positions[0, : run.length].tolist() == list(range(run.length))
        checked.append(run.length)
        return random_tree(run, ahead)

    drafter = Scripted(check_then_draw)
    engine = Engine(target, drafter)
    for prompt, answer, shared in turns_of(model):
        prefilled.clear()
        drafter.truth = answer
        assert decode(engine, prompt, max_new_tokens=NUM_TOKENS).ids == answer
        if target.family.may_cut_passes:
            assert sum(prefilled) == len(prompt) - 1 - shared
        else:
            assert sum(prefilled) >= len(prompt)
    assert checked


def fresh(model: Any, prompt: list[int]) -> list[int]:
    return decode(Engine(Target(model), PlainDrafter()), prompt, max_new_tokens=NUM_TOKENS).ids


def turns_of(model: Any) -> Conversation:
    """Two turns, and the first one once more: the text of a longrope crosses its boundary in between."""
    first, second = fresh(model, FIRST), [*FIRST, *fresh(model, FIRST), *prompt_ids(4, seed=3)]
    answer = fresh(model, second)
    return [(FIRST, first, 0), (second, answer, len(FIRST) + len(first) - 1), (FIRST, first, len(FIRST) - 1)]


@pytest.mark.parametrize("layers", [(1,), (1, 0, 1)])
def test_a_drafter_observes_kept_tokens_like_prefilled_ones(layers, target, turns):
    """All tokens once, in order, with the features that it asked for; in chunks, as ever."""
    drafter = Scripted(random_tree)
    drafter.features = Features(last_hidden=True, layers=layers)
    engine = Engine(target, drafter, prefill_chunk=8)
    for prompt, answer, _ in turns[0.0]:
        drafter.truth = answer
        assert decode(engine, prompt, max_new_tokens=NUM_TOKENS).ids == answer
        committed = [*prompt, *answer[:-1]]
        assert [token for observed in drafter.observed for token in observed.tokens] == committed
        assert all(len(observed.tokens) <= 8 for observed in drafter.observed)
        states = target.model(torch.tensor([committed]), use_cache=False, output_hidden_states=True).hidden_states
        seen = torch.cat([observed.features for observed in drafter.observed])
        in_order = torch.cat([states[-1], *(states[layer] for layer in layers)], dim=-1)[0]
        torch.testing.assert_close(seen, in_order, rtol=0, atol=1e-9)


def test_a_kept_text_goes_to_one_generation_only(target, turns, prefilled):
    engine = Engine(target, PlainDrafter())
    (first, answer, _), (second, expected, shared) = turns[0.0][:2]
    assert decode(engine, first, max_new_tokens=NUM_TOKENS).ids == answer
    prefilled.clear()
    streams = [engine.generate(request(second, max_new_tokens=NUM_TOKENS)) for _ in range(3)]
    steps = list(zip(*streams, strict=True))
    assert [[one.token_ids[0] for one in stream] for stream in zip(*steps, strict=True)] == [expected] * 3
    assert prefilled == [len(second) - 1 - shared, len(second) - 1, len(second) - 1]
    assert len(engine.kept) == 1


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_threads_that_go_on_from_one_text_say_what_each_says_alone(keep, target, turns):
    engine = Engine(target, configured("layer-skip-dynamic", target), keep=keep)

    def talk() -> list[list[int]]:
        return [decode(engine, prompt, max_new_tokens=NUM_TOKENS).ids for prompt, _, _ in turns[0.0]]

    expected = [answer for _, answer, _ in turns[0.0]]
    assert at_once([talk] * 4) == [expected] * 4
    assert len(engine.kept) <= max(1, keep)


def test_nothing_is_kept_where_nothing_is_to_be(target, turns, prefilled):
    engine = Engine(target, PlainDrafter(), keep=0)
    for prompt, answer, _ in turns[0.0]:
        prefilled.clear()
        assert decode(engine, prompt, max_new_tokens=NUM_TOKENS).ids == answer
        assert sum(prefilled) == len(prompt) - 1
    assert len(engine.kept) == 1, "its memory serves the next text"


def test_as_many_texts_are_kept_as_were_asked_for(target, prefilled):
    engine = Engine(target, PlainDrafter(), keep=2)
    prompts = [[first, *prompt_ids(9, seed=first)] for first in (2, 3, 4)]

    def rows(place: int) -> int:
        prefilled.clear()
        decode(engine, prompts[place], max_new_tokens=3)
        return sum(prefilled)

    assert [rows(place) for place in (0, 1, 0, 1, 1)] == [9, 9, 0, 0, 0]
    assert rows(2) == 9  # in the place of 0, which was not asked for as long
    assert [rows(place) for place in (1, 2, 0)] == [0, 0, 9]
    assert len(engine.kept) == 2


def test_forgetting_frees_the_memory(target, prefilled):
    engine = Engine(target, PlainDrafter())
    decode(engine, FIRST, max_new_tokens=3)
    (kept,) = engine.kept._texts
    cache, keys = weakref.ref(kept.cache), weakref.ref(kept.cache.layers[0].keys)
    del kept
    gc.disable()
    try:
        engine.forget()
        assert cache() is None
        assert keys() is None, "memory is free at once, not when garbage is looked for"
    finally:
        gc.enable()
    prefilled.clear()
    decode(engine, FIRST, max_new_tokens=3)
    assert sum(prefilled) == len(FIRST) - 1


@pytest.mark.parametrize("how", ["in place", "loaded", "replaced"])
def test_what_other_weights_have_made_is_not_gone_on_from(how, prefilled):
    model = build("llama")
    engine = Engine(Target(model), PlainDrafter())
    before = decode(engine, FIRST, max_new_tokens=NUM_TOKENS).ids
    assert decode(engine, FIRST, max_new_tokens=NUM_TOKENS).ids == before
    layer, other = model.model.layers[0].mlp, build("llama", seed=4)
    if how == "in place":
        with torch.no_grad():
            layer.up_proj.weight.mul_(-1)
    elif how == "loaded":
        model.load_state_dict(other.state_dict())
    else:
        layer.up_proj.weight = other.model.layers[0].mlp.up_proj.weight
    prefilled.clear()
    answer = decode(engine, FIRST, max_new_tokens=NUM_TOKENS).ids
    assert sum(prefilled) == len(FIRST) - 1
    assert answer == oracle_generate(model, FIRST, max_new_tokens=NUM_TOKENS) != before
    assert len(engine.kept) == 1


@pytest.mark.parametrize("keep", [-1, 1.5, True])
def test_a_bad_number_of_texts_is_refused(keep, target):
    with pytest.raises(InputError, match="keep is"):
        Engine(target, PlainDrafter(), keep=keep)


# -- which text is taken -----------------------------------------------------------------------------------------------


def texts(most: int, *tokens: list[int]) -> tuple[KeptTexts, list[KeptText]]:
    kept = KeptTexts(most)
    made = [KeptText(KVCache(0, torch.device("cpu")), one, (), 0) for one in tokens]
    for one in made:
        kept.put(one)
    return kept, made


def test_the_last_token_of_a_prompt_is_never_shared():
    _, (text,) = texts(1, [1, 2, 3])
    shared = [text.num_shared(prompt) for prompt in ([1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [2], [1, 9, 3])]
    assert shared == [0, 1, 2, 3, 0, 1]


def test_the_longest_beginning_is_taken():
    kept, (_, long, _) = texts(3, [1, 2, 3], [1, 2, 3, 4, 5], [1, 2])
    assert kept.take([1, 2, 3, 4, 5, 6], 0) is long


def test_a_text_of_which_little_would_be_used_waits_for_its_own():
    kept, (one, _) = texts(3, [1, 2, 3, 4, 5, 6], [7, 8, 9])
    assert kept.take([1, 2, 9, 9, 9, 9, 9], 0) is None, "there is room for another"
    assert kept.take([1, 2, 3, 4, 5, 6, 7], 0) is one


def test_where_there_is_no_room_the_oldest_goes():
    kept, (one, other) = texts(2, [1, 2, 3, 4, 5, 6], [7, 8, 9])
    assert kept.take([7, 7, 7, 7, 7, 7, 7], 0) is one
    assert kept.take([8, 8, 8], 0) is None
    kept.put(one)
    assert kept.take([9, 9, 9], 0) is other
