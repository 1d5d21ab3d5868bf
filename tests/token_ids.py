"""What every method emits on the shipped model, step by step: a record that a change of the code's layout must keep.

    python tests/token_ids.py        # writes tests/token_ids.json anew; only after a change that is meant to alter it

All trees have fixed sizes and the weights are float64, so that neither a clock nor rounding decides anything. No text
ends before its budget, so that every prompt exercises every method.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

import slipstream

RECORD = Path(__file__).with_suffix(".json")
MAX_NEW_TOKENS = 32
PROMPTS = {
    "story": "Tell me a story about a dog and a boat.",
    "repetition": "Copy this list twice: red, green, blue, red, green, blue.",
    "code": "def add(a, b):\n    return a + b\n\ndef",
}
_HEAD_TREE = {"total": 12}
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("plain", {}),
    "layer-skip": ("layer-skip", _HEAD_TREE),
    "layer-skip chain": ("layer-skip", {"tree": "chain"}),
    "eagle2": ("eagle2", {"width": 8, "depth": 5, "total": 30}),
    "eagle": ("eagle", {"total": "all"}),
    "draft-model": ("draft-model", _HEAD_TREE),
    "draft-model chain": ("draft-model", {"tree": "chain"}),
    "medusa": ("medusa", _HEAD_TREE),
    "medusa static": ("medusa", {"tree": "static"}),
    "hydra": ("hydra", _HEAD_TREE),
    "hydra static": ("hydra", {"tree": "static"}),
    "prompt-lookup": ("prompt-lookup", {"length": 10, "branches": 4}),
    "lookahead": ("lookahead", {"window": 7, "level": 5, "guesses": 7}),
}
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "coupled": {"temperature": 1.0, "seed": 1, "verification": "coupled"},
    "rejection": {"temperature": 1.0, "seed": 1, "verification": "rejection"},
}

Steps = list[list[Any]]
"""Of every step: the tokens emitted, how many were drafted, how many of these accepted."""


def prompts_of(plain: slipstream.Model) -> dict[str, list[int]]:
    """The prompts as token ids, without a chat template."""
    return {name: plain.tokenizer.encode(text) for name, text in PROMPTS.items()}


def load_plain() -> slipstream.Model:
    """The shipped model, which all configurations share."""
    return slipstream.load("tiny", "plain", dtype="float64", device="cpu")


def steps_of(
    plain: slipstream.Model,
    configuration: str,
    prompts: dict[str, list[int]],
    samplings: Iterable[str] = SAMPLINGS,
    sizes: str = "exact",
) -> dict[str, Steps]:
    """What a configuration emits for every prompt, under some ways to choose tokens, in passes of such sizes."""
    method, options = CONFIGURATIONS[configuration]
    model = slipstream.load(plain.target.model, method, tokenizer=plain.tokenizer, sizes=sizes, **options)
    found = {}
    for sampling in samplings:
        settings = SAMPLINGS[sampling]
        for name, prompt in prompts.items():
            steps = model.stream(prompt, max_new_tokens=MAX_NEW_TOKENS, eos_token_id=(), **settings)
            found[f"{sampling} {name}"] = [[list(one.token_ids), one.num_drafted, one.num_accepted] for one in steps]
    return found


def _lines(record: dict[str, Any]) -> Iterator[str]:
    """The record as JSON, a generation a line."""
    yield "{"
    yield f'"prompts": {json.dumps(record["prompts"])},'
    yield '"steps": {'
    methods = record["steps"]
    for place, (configuration, generations) in enumerate(methods.items()):
        yield f"{json.dumps(configuration)}: {{"
        rows = [f"{json.dumps(name)}: {json.dumps(steps)}" for name, steps in generations.items()]
        yield ",\n".join(rows)
        yield "}" if place == len(methods) - 1 else "},"
    yield "}"
    yield "}"


def main() -> None:
    """Write the record."""
    torch.set_num_threads(1)
    plain = load_plain()
    prompts = prompts_of(plain)
    steps = {configuration: steps_of(plain, configuration, prompts) for configuration in CONFIGURATIONS}
    RECORD.write_text("\n".join(_lines({"prompts": prompts, "steps": steps})) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
