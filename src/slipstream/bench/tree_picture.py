"""A verified tree in words and numbers, to be drawn later."""

from __future__ import annotations

from typing import Any

from slipstream.bench.tree_statistics import fates
from slipstream.bench.watching import Cycle


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
