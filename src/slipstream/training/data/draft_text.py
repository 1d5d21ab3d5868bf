"""What the demo's draft heads and draft model learn from: documents of the corpus, and the demo target's own answers.

Drafters must guess what the target says, and a small target says other things than its corpus: its greedy answers
repeat themselves, and its sampled ones are less sensible. So a part of the text is answered anew by the target.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slipstream.errors import InputError
from slipstream.target.target import Target
from slipstream.training.data.corpus import PROMPT_BIT, Tokens
from slipstream.training.data.dialogues import Dialogue, RegenerateSettings, answer_prompts, usable_dialogues
from slipstream.training.data.encoded import Corpus

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftTextSettings:
    """How much text, and how much of it is the target's own."""

    num_documents: int = 12000
    """Documents of the corpus, drawn by the weights of its final mix."""
    num_answered: int = 3000
    """Prompts that the target answers; each gives two dialogues, one greedy and one sampled at temperature 1."""
    max_length: int = 384
    """Tokens of a dialogue; longer documents give a random window."""
    answer_tokens: int = 96
    """Tokens of an answer by the target, at most."""
    max_prompt: int = 160
    """Tokens of a prompt that is answered, at most."""
    seed: int = 0
    """Of the choice of documents and of sampled answers."""

    def __post_init__(self) -> None:
        for name in ("num_documents", "max_length", "answer_tokens", "max_prompt"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} of the draft text is {getattr(self, name)}; it must be at least 1")
        if self.num_answered < 0:
            raise InputError(f"num_answered of the draft text is {self.num_answered}; it must be at least 0")


def draft_text(target: Target, corpus: Corpus, work: Path, settings: DraftTextSettings) -> list[Dialogue]:
    """The dialogues, in a fixed order. The answers are kept in `work`, where an interrupted run goes on."""
    rng = np.random.default_rng(settings.seed)
    documents = [_window(one, settings.max_length, rng) for one in _drawn(corpus, settings.num_documents, rng)]
    prompts = _prompts(corpus, settings, rng)
    answered: list[Dialogue] = []
    for temperature in (0.0, 1.0):
        how = RegenerateSettings(
            max_new_tokens=settings.answer_tokens, temperature=temperature, batch_size=64, seed=settings.seed
        )
        store = work / f"answers-{target.hash}-T{temperature:g}-{settings.seed}-{settings.answer_tokens}.jsonl"
        work.mkdir(parents=True, exist_ok=True)
        answers = answer_prompts(target, prompts, store, how)
        answered += [_dialogue(prompts[key], answers[key]) for key in prompts]
    return usable_dialogues([*documents, *answered], settings.max_length)


def _drawn(corpus: Corpus, count: int, rng: np.random.Generator) -> Iterator[Tokens]:
    """Documents by the weights of the final mix, most wanted kinds first only by chance."""
    names = list(corpus.train)
    weights = np.array([corpus.mix[name].final * len(corpus.train[name]) for name in names])
    picked = rng.choice(len(names), size=count, p=weights / weights.sum())
    for place in picked:
        source = corpus.train[names[place]]
        yield source[int(rng.integers(len(source)))]


def _window(document: Tokens, length: int, rng: np.random.Generator) -> Dialogue:
    start = int(rng.integers(max(1, len(document) - length + 1)))
    window = document[start : start + length]
    ids = (window & (PROMPT_BIT - 1)).tolist()
    return Dialogue(tuple(ids), tuple((window < PROMPT_BIT).tolist()))


def _prompts(corpus: Corpus, settings: DraftTextSettings, rng: np.random.Generator) -> dict[tuple[int, int], list[int]]:
    """Openings of conversations up to their first answer, numbered; plain text has none."""
    prompts: dict[tuple[int, int], list[int]] = {}
    if settings.num_answered == 0:
        return prompts
    for document in _drawn(corpus, 20 * settings.num_answered, rng):
        asked = document >= PROMPT_BIT
        first = int(asked.argmax())
        end = first + int((~asked[first:]).argmax())
        if asked.any() and first < end <= settings.max_prompt:
            prompts[len(prompts), 0] = (document[:end] & (PROMPT_BIT - 1)).tolist()
        if len(prompts) == settings.num_answered:
            return prompts
    raise InputError(
        f"only {len(prompts)} conversations open with at most {settings.max_prompt} tokens; lower num_answered, "
        f"which is {settings.num_answered}, or raise max_prompt"
    )


def _dialogue(prompt: list[int], answer: list[int]) -> Dialogue:
    return Dialogue((*prompt, *answer), (*[False] * len(prompt), *[True] * len(answer)))
