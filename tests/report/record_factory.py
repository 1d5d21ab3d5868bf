"""Records of made-up runs: every figure follows from a few given ones, so that tests know what must come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ENTRANTS = (
    {"name": "plain", "kind": "ours", "method": "plain", "options": {}},
    {"name": "eagle2", "kind": "ours", "method": "eagle2", "options": {}},
    {"name": "eagle2-60", "kind": "ours", "method": "eagle2", "options": {"total": 60}},
    {"name": "prompt-lookup", "kind": "ours", "method": "prompt-lookup", "options": {}},
    {"name": "hf-plain", "kind": "peer", "method": "hf-plain", "options": {}},
    {"name": "hf-assisted", "kind": "peer", "method": "hf-assisted", "options": {}},
)
SPEEDS = {"plain": 1.0, "eagle2": 1.5, "eagle2-60": 0.75, "prompt-lookup": 1.25, "hf-plain": 0.5, "hf-assisted": 0.8}
TAUS = {"plain": 1.0, "eagle2": 2.0, "eagle2-60": 4.0, "prompt-lookup": 1.6, "hf-plain": None, "hf-assisted": None}
PLAIN_SPEED = 100.0  # tokens a second


def make_record(
    *,
    temperatures: Sequence[float] = (0.0, 1.0),
    tasks: Sequence[str] = ("mt_bench", "gsm8k"),
    entrants: Sequence[Mapping[str, Any]] = ENTRANTS,
    **changes: Any,
) -> dict[str, Any]:
    """A record as JSON gives it. Each task is 10 % faster than the one before it. changes: of its top-level keys."""
    names = [entrant["name"] for entrant in entrants]
    ours = [entrant["name"] for entrant in entrants if entrant["kind"] == "ours"]
    drafting = [name for name in ours if name != "plain"]
    record = {
        "format": 1,
        "run": {
            "command": "slipstream bench run -m demo --threads 1",
            "date": "2026-11-21",
            "commit": "abc1234",
            "versions": {"slipstream": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"},
            "hardware": "Imaginary CPU, 2 cores",
            "device": "cpu",
            "threads": 1,
            "dtype": "float32",
            "model": "demo",
            "target": "2c505e8bee1cb275",
            "num_parameters": 10_700_000,
            "entrants": [dict(entrant) for entrant in entrants],
            "temperatures": list(temperatures),
            "tasks": list(tasks),
            "prompts_per_task": 10,
            "max_new_tokens": 64,
            "max_prompt_tokens": None,
            "samples": 1,
            "repeats": 1,
            "seed": 0,
            "top_p": None,
            "data": "shipped prompts",
        },
        "wall_s": 600.0,
        "complete": True,
        "num_prompts_done": 20 * len(tasks),
        "num_prompts": 20 * len(tasks),
        "tasks": {task: {"num_prompts": 20, "num_turns": 20, "num_truncated": 0} for task in tasks},
        "rows": [
            make_row(task, name, temperature, 1 + 0.1 * number, 20 if task != "all" else 20 * len(tasks))
            for number, task in enumerate((*tasks, "all"))
            for temperature in temperatures
            for name in names
        ],
        "verify_cost": [[1, 0.008], [8, 0.012], [61, 0.030]],
        "calibration": [make_calibration(name, one) for one in temperatures for name in drafting[:2]],
        "positions": [make_positions(name, one) for one in temperatures for name in drafting[:2]],
        "depths": [
            {"entrant": name, "temperature": one, "num_reached": [100, 60, 30, 5], "num_accepted": [60, 30, 5, 1]}
            for one in temperatures
            for name in drafting
        ],
        "trees": [make_tree(drafting[0], temperatures[0])] if drafting else [],
        "faults": [],
    }
    return {**record, **changes}


def make_row(task: str, entrant: str, temperature: float, pace: float = 1.0, num_answers: int = 20) -> dict[str, Any]:
    """A row. pace: multiplies the speed-up of all but plain, and every tau."""
    speed = SPEEDS[entrant] * (pace if entrant != "plain" else 1.0)
    tau = TAUS[entrant] and TAUS[entrant] * (pace if entrant != "plain" else 1.0)
    ours = tau is not None
    compared = ours or temperature == 0
    per_second = PLAIN_SPEED * speed
    return {
        "task": task,
        "entrant": entrant,
        "temperature": temperature,
        "num_answers": num_answers,
        "num_tokens": 1000,
        "num_cycles": round(1000 / tau) if ours else None,
        "num_drafted": 2000 if ours else None,
        "num_accepted": 500 if ours else None,
        "accept_lengths": [0, 300, 200, 100, 0, 10] if ours else None,
        "tau": tau,
        "num_repeated": 100,
        "num_ngrams": 1000,
        "repetition_rate": 0.1,
        "total_s": 1000 / per_second,
        "prefill_s": 0.5 if ours else None,
        "tokens_per_second": per_second,
        "ms_per_token": {"median": 1000 / per_second, "q1": 900 / per_second, "q3": 1100 / per_second},
        "ratio_to_plain": speed,
        "ratio_to_transformers": speed / SPEEDS["hf-plain"],
        "ratio_to_plain_spread": {"median": speed, "q1": 0.9 * speed, "q3": 1.1 * speed},
        "efficiency": speed / tau if ours else None,
        "cycle_ms": {"draft": 2.0, "build": 0.5, "verify": 8.0, "sample": 1.0, "host": 0.25} if ours else None,
        "memory_peak_gib": 0.5,
        "memory_growth_gib": 0.01,
        "verdicts": {"identical": num_answers, "rounding": 0, "fault": 0, "differs": 0} if compared else None,
    }


def make_calibration(entrant: str, temperature: float) -> dict[str, Any]:
    """Twenty bins; the drafter is right as often as it believes, but for the empty first bin."""
    middles = [(k + 0.5) / 20 for k in range(20)]
    return {
        "entrant": entrant,
        "temperature": temperature,
        "num_nodes": [0, *[200] * 19],
        "num_accepted": [0, *[round(200 * one) for one in middles[1:]]],
        "confidence": [0.0, *[200 * one for one in middles[1:]]],
        "expected_calibration_error": 0.012,
    }


def make_positions(entrant: str, temperature: float) -> dict[str, Any]:
    """P1..P6, each accepted less often than the one before it."""
    return {
        "entrant": entrant,
        "temperature": temperature,
        "positions": {
            f"P{k}": {
                "num_nodes": [100] + [0] * 11,
                "num_accepted": [90 // k] + [0] * 11,
                "num_reached": 100,
                "acceptance": 0.9 / k,
                "acceptance_if_reached": 0.9 / k,
                "acceptance_when_sure": min(1.0, 1.1 / k),
                "acceptance_when_unsure": 0.5 / k,
            }
            for k in range(1, 7)
        },
    }


def make_tree(entrant: str, temperature: float, *, first: str = " the", num_nodes: int = 5) -> dict[str, Any]:
    """The tree of one cycle: a path of two accepted tokens, and siblings. first: text of the first node."""
    nodes = [
        {"text": first, "parent": -1, "confidence": 0.8, "value": 0.8, "accepted": True},
        {"text": " sea", "parent": 0, "confidence": 0.5, "value": 0.4, "accepted": True},
    ]
    nodes += [
        {"text": f" w{k}", "parent": k % 2 - 1, "confidence": 0.1, "value": 0.05, "accepted": False}
        for k in range(2, num_nodes)
    ]
    return {
        "entrant": entrant,
        "temperature": temperature,
        "task": "mt_bench",
        "prompt_id": 81,
        "turn": 0,
        "cycle": 3,
        "prefix": "rain falls on",
        "root": " on",
        "nodes": nodes,
        "next": ".",
    }


def make_fault(entrant: str = "eagle2", verdict: str = "rounding") -> dict[str, Any]:
    """An answer that is not plain's."""
    return {
        "entrant": entrant,
        "temperature": 1.0,
        "task": "gsm8k",
        "prompt_id": 7,
        "turn": 1,
        "sample": 0,
        "first_difference": 12,
        "verdict": verdict,
    }
