"""Made-up lines of a run's journal."""

from __future__ import annotations

from typing import Any

from slipstream.records.journal import answer_line
from slipstream.records.schema import Answer, CycleMs


def line(**known: Any) -> dict[str, Any]:
    """An answer as the journal has it, of which only some is of interest."""
    usual: dict[str, Any] = {
        "task": "qa",
        "prompt_id": 1,
        "category": "",
        "turn": 0,
        "sample": 0,
        "temperature": 0.0,
        "num_prompt_tokens": 5,
        "num_tokens_cut": 0,
        "entrant": "plain",
        "token_ids": [1, 2],
        "text": "",
        "seconds": [1.0],
        "num_cycles": 2,
        "num_drafted": 0,
        "num_accepted": 0,
        "accept_lengths": [0, 2],
        "prefill_s": 0.0,
        "cycle_ms": CycleMs(0.0, 0.0, 0.0, 0.0, 0.0),
        "memory_peak_gib": None,
        "memory_growth_gib": None,
        "verdict": "identical",
        "first_difference": None,
    }
    return answer_line(Answer(**{**usual, **known}))
