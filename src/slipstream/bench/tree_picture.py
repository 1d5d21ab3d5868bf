"""A verified tree in words and numbers, to be drawn later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slipstream.bench.tree_statistics import fates
from slipstream.bench.watching import Cycle

PICTURED_CYCLE = 2
"""Of the first answer to the first prompt of a task, or the last where there are fewer: fixed beforehand."""
_PREFIX_TOKENS = 12


def pictured(cycles: Sequence[Cycle], answer: Sequence[int], tokenizer: Any) -> dict[str, Any] | None:
    """The chosen cycle of an answer, with its number (from 0) and the words before it; None if it drafted nothing."""
    number = min(PICTURED_CYCLE, len(cycles) - 1)
    if number < 0 or not cycles[number].tree.num_nodes:
        return None
    emitted = sum(len(cycle.path) + 1 for cycle in cycles[:number])  # the last of them is the cycle's root
    before = answer[: max(0, emitted - 1)][-_PREFIX_TOKENS:]
    prefix = tokenizer.decode(list(before), skip_special_tokens=True)
    return {"cycle": number, "prefix": prefix, **described(cycles[number], tokenizer)}


def described(cycle: Cycle, tokenizer: Any) -> dict[str, Any]:
    """A cycle to be drawn: its nodes with texts, confidences and fates, and the target's next token. For JSON."""
    found = fates(cycle)
    last = cycle.path[-1] + 1 if cycle.path else 0
    tokens, parents = cycle.tree.tokens.tolist(), cycle.tree.parents.tolist()
    return {
        "root": tokenizer.decode([cycle.root]),
        "next": tokenizer.decode([int(cycle.choice[last])]),
        "nodes": [
            {
                "text": tokenizer.decode([token]),
                "parent": parent,
                "confidence": round(float(found.confidence[node]), 4),
                "value": round(float(found.value[node]), 4),
                "accepted": node in cycle.path,
            }
            for node, (token, parent) in enumerate(zip(tokens, parents, strict=True))
        ],
    }
