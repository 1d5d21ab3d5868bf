"""Rows of a draft tree in which the settings leave no token: they decide only where plain decoding stands there too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from doubles import Scripted, far_too_deep, request
from families import VOCAB_SIZE, prompt_ids
from slipstream.engine.engine import Engine
from slipstream.errors import InputError
from slipstream.methods.plain import PlainDrafter
from slipstream.target.target import Target

PROMPT = prompt_ids(12)
WORDS = [token for token in range(VOCAB_SIZE) if token not in PROMPT][:3]
"""All that may be said, each of them once: after them no token is left."""
HOW: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"temperature": 1.0},
    "top_h": {"temperature": 1.0, "top_h": 0.5},
    "eta": {"temperature": 1.0, "eta_cutoff": 0.1},
    "others": {"temperature": 1.0, "typical_p": 0.5, "epsilon_cutoff": 0.01, "top_k": 4, "top_p": 0.9, "min_p": 0.1},
}


class Listener:
    """A stopper that never stops."""

    def append_token(self, token: int) -> bool:
        return False


def answer(engine: Engine, how: str, verification: str, max_new_tokens: int, eos: tuple[int, ...] = ()) -> list[int]:
    plain = request(PROMPT, max_new_tokens=max_new_tokens, eos_token_ids=eos, seed=3, stopper=Listener())
    others = tuple(token for token in range(VOCAB_SIZE) if token not in WORDS)
    settings = {"suppress_tokens": others, "no_repeat_ngram_size": 1, **HOW[how]}
    asked = replace(
        plain,
        processing=replace(plain.processing, **settings),
        sampling=replace(plain.sampling, verification=verification),
    )
    return [token for step in engine.generate(asked) for token in step.token_ids]


@pytest.mark.parametrize("verification", ["coupled", "rejection"])
@pytest.mark.parametrize("how", HOW)
def test_a_row_without_any_token_decides_only_where_plain_stands_there_too(how, verification, family_model) -> None:
    target = Target(family_model("llama"))
    plain = Engine(target, PlainDrafter())
    said = answer(plain, how, "coupled", 3)
    assert sorted(said) == WORDS

    tree = Scripted(far_too_deep, said)
    ended = answer(Engine(target, tree), how, verification, 9, eos=(said[2],))  # rows behind the end have no token
    assert ended == said if verification == "coupled" else ended[-1] == said[2]

    unused = [[said[2]], [said[2], said[1]], [said[2], said[1], said[0]]]  # the last of these rows has no token
    tree = Scripted(lambda run, ahead: [*unused, *([path] for path in ahead[:1] if path != said[2])], said)
    ended = answer(Engine(target, tree), how, verification, 9, eos=(said[2],))
    assert ended == said if verification == "coupled" else ended[-1] == said[2]

    for engine in (plain, Engine(target, Scripted(far_too_deep, said)), Engine(target, tree)):
        with pytest.raises(InputError, match="the settings rule out every token of the vocabulary at this point"):
            answer(engine, how, verification, 9)
