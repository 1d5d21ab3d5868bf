"""What `draft_trees.py` counts: rows of the tables, calibration curves, positions; to JSON and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import slipstream
from slipstream.bench.comparison import VERDICTS
from slipstream.bench.repetition import Repetition, repetition
from slipstream.bench.tree_statistics import CalibrationCurve, PositionTable, fates
from slipstream.bench.watching import Cycle

STATIC, DYNAMIC, SAME_BUDGET = "eagle", "eagle2-60", "eagle2-25"
UNCALIBRATED, UNCALIBRATED_SAME_BUDGET = "eagle2-60-uncalibrated", "eagle2-25-uncalibrated"
LITTLE_REPETITION = 0.2  # answers that repeat fewer of their n-grams are also added up by themselves

Key = tuple[float, str, str]  # temperature, rule, method


@dataclass(slots=True)
class Row:
    """One method at one temperature under one rule, added up over answers."""

    stats: slipstream.Stats = field(default_factory=slipstream.Stats)
    num_answers: int = 0
    little: Counter[str] = field(default_factory=Counter)
    """Answers, tokens and cycles of the answers with little repetition alone."""
    repeated: Repetition = field(default_factory=Repetition)
    verdicts: Counter[str] = field(default_factory=Counter)

    def add(self, output: slipstream.Output, verdict: str | None) -> None:
        """Count one answer. verdict: None where it cannot be compared."""
        found = repetition(output.token_ids)
        self.stats += output.stats
        self.num_answers += 1
        self.repeated = self.repeated.plus(found)
        if found.rate < LITTLE_REPETITION:
            self.little.update(_little(1, output.stats.num_tokens, output.stats.num_cycles))
        if verdict is not None:
            self.verdicts[verdict] += 1

    def merge(self, row: Mapping[str, Any]) -> None:
        """Add what `to_dict` gave."""
        self.stats += _stats(row)
        self.num_answers += row["num_answers"]
        self.little.update({name: row["little_repetition"][name] for name in _little()})
        self.repeated = self.repeated.plus(Repetition(row["num_repeated"], row["num_ngrams"]))
        self.verdicts.update(row["verdicts"] or {})

    def to_dict(self, key: Key) -> dict[str, Any]:
        """For JSON. `verdicts` is null under the rejection rule."""
        temperature, rule, method = key
        tau = round(self.little["num_tokens"] / max(1, self.little["num_cycles"]), 4)
        return {
            "method": method,
            "temperature": temperature,
            "rule": rule,
            "num_answers": self.num_answers,
            **_rounded(self.stats),
            "nodes_per_cycle": round(self.stats.num_drafted / max(1, self.stats.num_cycles), 2),
            "num_repeated": self.repeated.num_repeated,
            "num_ngrams": self.repeated.num_ngrams,
            "repetition_rate": round(self.repeated.rate, 4),
            "little_repetition": {**_little(), **self.little, "tau": tau},
            "verdicts": {name: self.verdicts[name] for name in VERDICTS} if rule != "rejection" else None,
        }


def _little(num_answers: int = 0, num_tokens: int = 0, num_cycles: int = 0) -> dict[str, int]:
    return {"num_answers": num_answers, "num_tokens": num_tokens, "num_cycles": num_cycles}


def _stats(row: Mapping[str, Any]) -> slipstream.Stats:
    """Records made before `plain_s` was estimated have none."""
    return slipstream.Stats(**{one.name: row[one.name] for one in fields(slipstream.Stats) if one.name in row})


def _rounded(stats: slipstream.Stats) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in stats.to_dict().items()}


class Tally:
    """All that is counted over answers: rows, calibration curves, positions. Goes to JSON and comes back from it."""

    def __init__(self) -> None:
        self.rows: dict[Key, Row] = {}
        self.curves: dict[Key, CalibrationCurve] = {}
        self.positions: dict[Key, PositionTable] = {}

    def add(self, key: Key, output: slipstream.Output, verdict: str | None, cycles: Iterable[Cycle] | None) -> None:
        """Count one answer. cycles: its trees where they were watched."""
        self.rows.setdefault(key, Row()).add(output, verdict)
        for cycle in cycles or ():
            found = fates(cycle)
            self.curves.setdefault(key, CalibrationCurve()).count(found)
            if key[2] == STATIC:
                self.positions.setdefault(key, PositionTable()).count(cycle, found)

    def merge(self, found: Mapping[str, Any]) -> None:
        """Add what `to_dict` gave."""
        for row in found["rows"]:
            self.rows.setdefault((row["temperature"], row["rule"], row["method"]), Row()).merge(row)
        for one in found["calibration"]:
            self.curves.setdefault(_key(one), CalibrationCurve()).merge(one)
        for one in found["positions"]:
            self.positions.setdefault(_key(one), PositionTable()).merge(one["positions"])

    def to_dict(self) -> dict[str, Any]:
        """For JSON: lists in the order of the run, which is the same for every task."""
        return {
            "rows": [row.to_dict(key) for key, row in self.rows.items()],
            "calibration": [_named(key) | curve.to_dict() for key, curve in self.curves.items()],
            "positions": [_named(key) | {"positions": one.to_dict()} for key, one in self.positions.items()],
        }


def _key(entry: Mapping[str, Any]) -> Key:
    return entry["temperature"], entry["rule"], entry["method"]


def _named(key: Key) -> dict[str, Any]:
    return dict(zip(("temperature", "rule", "method"), key, strict=True))


def findings(tasks: Mapping[str, Any], everything: Mapping[str, Any]) -> dict[str, Any]:
    """The promises of EAGLE-2 (dynamic above static on every task), and the ablations beside the whole method."""
    above = []
    for temperature, rule in ((0.0, "greedy"), (1.0, "coupled"), (1.0, "rejection")):
        for method in (DYNAMIC, SAME_BUDGET, UNCALIBRATED, UNCALIBRATED_SAME_BUDGET):
            if rule == "rejection" and method in (UNCALIBRATED, UNCALIBRATED_SAME_BUDGET):
                continue  # that rule takes probabilities as they are
            gains = {
                task: round(_tau(rows, temperature, rule, method) - _tau(rows, temperature, rule, STATIC), 3)
                for task, rows in ((task, found["rows"]) for task, found in tasks.items())
            }
            on_all = all(gain > 0 for gain in gains.values())
            above.append(
                {"temperature": temperature, "rule": rule, "method": method, "on_every_task": on_all, "tau_gain": gains}
            )
    ablation = {
        f"T={temperature:g}": {
            row["method"]: {name: row[name] for name in ("tau", "nodes_per_cycle")}
            for row in everything["rows"]
            if row["method"].startswith(DYNAMIC) and row["rule"] == rule
        }
        for temperature, rule in ((0.0, "greedy"), (1.0, "coupled"))
    }
    return {"above_static": above, "ablation": ablation}


def _tau(rows: Iterable[Mapping[str, Any]], temperature: float, rule: str, method: str) -> float:
    found: float = next(row["tau"] for row in rows if _key(row) == (temperature, rule, method))
    return found
