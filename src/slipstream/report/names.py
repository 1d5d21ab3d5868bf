"""How tasks, temperatures and numbers are written for people."""

from __future__ import annotations

from slipstream.records.schema import ALL

TASKS = {
    "mt_bench": "MT-bench",
    "humaneval": "HumanEval",
    "gsm8k": "GSM8K",
    "alpaca": "Alpaca",
    "cnn_dm": "CNN/DM",
    "nq": "NQ",
    "xsum": "XSum",
    ALL: "all",
}
MISSING = "-"
"""In place of a number that is not known."""


def task_name(task: str) -> str:
    """A task as papers write it; one that they do not have by its own name."""
    return TASKS.get(task, task)


def temperature_name(temperature: float) -> str:
    """As in "T = 0"."""
    return f"T = {temperature:g}"


def temperature_slug(temperature: float) -> str:
    """For file names: "t0", "t0.7"."""
    return f"t{temperature:g}"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """As in "1 answer" or "1,680 answers"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def several(names: list[str]) -> str:
    """As in "a", "a and b" or "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
