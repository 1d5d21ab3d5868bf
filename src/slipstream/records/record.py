"""The record of a benchmark run, read and checked. Tables, figures and page are computed from it and nothing else.

Null (None) stands for what was not measured or cannot be said, such as the cycles of a peer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from slipstream.errors import InputError
from slipstream.records.shapes import read

FORMAT = 1
FILE = "record.json"
ALL = "all"
"""The task under which a row adds up all tasks."""
PLAIN = "plain"
TRANSFORMERS = "hf-plain"
"""The entrant that is `transformers`' own plain decoding."""


@dataclass(frozen=True)
class Entrant:
    """One row of the tables: a method with its options, or a peer."""

    name: str
    kind: str
    """"ours" or "peer": other software, measured in the same run."""
    method: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What was run, on what, with what."""

    command: str
    date: str
    commit: str | None
    versions: dict[str, str]
    hardware: str
    device: str
    threads: int | None
    dtype: str
    model: str
    target: str | None
    """Hash of the target's weights."""
    num_parameters: int | None
    entrants: list[Entrant]
    """In the order of the tables."""
    temperatures: list[float]
    tasks: list[str]
    prompts_per_task: int | None
    max_new_tokens: int
    max_prompt_tokens: int | None
    samples: int
    repeats: int
    seed: int
    top_p: float | None
    data: str
    left_out: dict[str, str] = field(default_factory=dict)
    """Peers that do not apply to the target, and why."""
    continued: list[dict[str, Any]] = field(default_factory=list)
    """How often it was gone on with: the dates, and what was different then."""


@dataclass(frozen=True)
class Task:
    """How much of a task was run."""

    num_prompts: int
    num_turns: int
    num_truncated: int
    """Turns whose prompt was cut to fit."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over answers."""

    median: float
    q1: float
    q3: float


@dataclass(frozen=True)
class CycleMs:
    """Mean milliseconds of a draft-verify cycle, by what they went into."""

    draft: float
    build: float
    verify: float
    sample: float
    host: float


@dataclass(frozen=True)
class Verdicts:
    """Answers compared with plain decoding: how many were what."""

    identical: int
    rounding: int
    """Differ in this dtype and not in float64."""
    fault: int
    """Differ in float64 too."""
    differs: int
    """Differ, and were not judged: a peer's."""

    @property
    def total(self) -> int:
        """Answers compared."""
        return self.identical + self.rounding + self.fault + self.differs


@dataclass(frozen=True)
class Row:
    """One entrant on one task (or `ALL`) at one temperature."""

    task: str
    entrant: str
    temperature: float
    num_answers: int
    num_tokens: int
    num_cycles: int | None
    num_drafted: int | None
    num_accepted: int | None
    accept_lengths: list[int] | None
    """Entry k: cycles that emitted k tokens."""
    tau: float | None
    num_repeated: int
    num_ngrams: int
    repetition_rate: float | None
    total_s: float
    prefill_s: float | None
    tokens_per_second: float | None
    ms_per_token: Spread | None
    ratio_to_plain: float | None
    ratio_to_transformers: float | None
    ratio_to_plain_spread: Spread | None
    """Paired by answer."""
    efficiency: float | None
    """ratio_to_plain / tau."""
    cycle_ms: CycleMs | None
    memory_peak_gib: float | None
    memory_growth_gib: float | None
    verdicts: Verdicts | None
    """None where answers cannot be compared token by token."""


@dataclass(frozen=True)
class Calibration:
    """Nodes whose parent was accepted, by the drafter's confidence in them in equal bins of [0, 1]."""

    entrant: str
    temperature: float
    num_nodes: list[int]
    num_accepted: list[int]
    confidence: list[float]
    """Sum over the bin's nodes."""
    expected_calibration_error: float | None


@dataclass(frozen=True)
class Place:
    """How one position of the draft tree fared."""

    num_nodes: list[int]
    """Cycles that had it, by the confidence of the path to it, highest first."""
    num_accepted: list[int]
    num_reached: int
    acceptance: float
    acceptance_if_reached: float
    acceptance_when_sure: float
    """In the third of cycles in which the drafter was surest."""
    acceptance_when_unsure: float


@dataclass(frozen=True)
class Positions:
    """The positions P1..P6 of an entrant's trees."""

    entrant: str
    temperature: float
    positions: dict[str, Place]


@dataclass(frozen=True)
class Depths:
    """Acceptance by depth. Index 0 is depth 1."""

    entrant: str
    temperature: float
    num_reached: list[int]
    """Cycles whose tree had a node at the depth under an accepted parent."""
    num_accepted: list[int]
    """Those that accepted one."""


@dataclass(frozen=True)
class Node:
    """A drafted token."""

    text: str
    parent: int
    """Index of the parent node, -1 for the root."""
    confidence: float
    value: float
    """Product of the confidences from the root to it."""
    accepted: bool


@dataclass(frozen=True)
class CycleTree:
    """The draft tree of one real cycle."""

    entrant: str
    temperature: float
    task: str
    prompt_id: int | str
    turn: int
    root: str
    nodes: list[Node]
    next: str
    """What the target said after the accepted path."""
    cycle: int | None = None
    """Of the answer, counted from 0."""
    prefix: str = ""
    """The last words before the root."""


@dataclass(frozen=True)
class Fault:
    """An answer that is not plain decoding's."""

    entrant: str
    temperature: float
    task: str
    prompt_id: int | str
    turn: int
    sample: int
    first_difference: int | None
    """Index of the first generated token that differs."""
    verdict: str


@dataclass(frozen=True)
class Record:
    """All that is known of a run."""

    run: Run
    wall_s: float
    complete: bool
    num_prompts_done: int
    num_prompts: int
    tasks: dict[str, Task]
    rows: list[Row]
    verify_cost: list[list[float]]
    """Pairs: rows of a target pass, seconds."""
    calibration: list[Calibration]
    positions: list[Positions]
    depths: list[Depths]
    trees: list[CycleTree]
    faults: list[Fault]

    def row(self, task: str, entrant: str, temperature: float) -> Row | None:
        """The row, if there are answers for it."""
        return self._index.get((task, entrant, temperature))

    def rows_of(self, task: str, temperature: float) -> list[Row]:
        """The rows of a task at a temperature, in the entrants' order."""
        found = (self.row(task, entrant.name, temperature) for entrant in self.run.entrants)
        return [row for row in found if row is not None]

    @cached_property
    def measured_tasks(self) -> list[str]:
        """The tasks that have answers, in order."""
        seen = {row.task for row in self._index.values()}
        return [task for task in self.run.tasks if task in seen]

    @cached_property
    def temperatures(self) -> list[float]:
        """The temperatures that have answers, in order."""
        seen = {row.temperature for row in self._index.values()}
        return [one for one in self.run.temperatures if one in seen]

    @cached_property
    def _index(self) -> dict[tuple[str, str, float], Row]:
        return {(row.task, row.entrant, row.temperature): row for row in self.rows if row.num_answers > 0}


def load_record(path: Path) -> Record:
    """The record in a file, or of a run's folder. Raises InputError saying what is missing or damaged."""
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        hint = " (`slipstream bench run --resume` writes it)" if path.is_dir() else ""
        raise InputError(f"no record at {file}{hint}; give a run's folder or its {FILE}")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is damaged: {error}") from error
    return parse_record(data, str(file))


def parse_record(data: Any, place: str = FILE) -> Record:
    """The record of parsed JSON. place: what to call it in messages."""
    version = data.get("format") if isinstance(data, dict) else None
    if version != FORMAT:
        raise InputError(f"{place} is no benchmark record of format {FORMAT} (its format is {version!r})")
    record = read(Record, data, place)
    _check_names(record, place)
    return record


def _check_names(record: Record, place: str) -> None:
    """Rows must speak of entrants and tasks that the run has, trees must be trees, costs must be pairs."""
    entrants = {entrant.name for entrant in record.run.entrants}
    speakers: Iterable[Any] = (record.rows, record.calibration, record.positions, record.depths, record.trees)
    for one in (one for group in speakers for one in group):
        if one.entrant not in entrants:
            raise InputError(f"{place} has figures of {one.entrant!r}, which is not among its entrants")
    for row in record.rows:
        if row.task not in (*record.run.tasks, ALL):
            raise InputError(f"{place} has a row of task {row.task!r}, which is not among its tasks")
    for number, tree in enumerate(record.trees):
        if any(not -1 <= node.parent < index for index, node in enumerate(tree.nodes)):
            raise InputError(f"{place}.trees[{number}] has a node that stands before its parent")
    if any(len(pair) != 2 for pair in record.verify_cost):
        raise InputError(f"{place}.verify_cost must hold pairs of rows and seconds")
