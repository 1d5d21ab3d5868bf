"""What a benchmark run writes down, for writers and readers alike: the journal's answers, and the record's figures.

Tables, figures and page are computed from a `Record` and nothing else. Names end in the unit: `_s` seconds, `_ms`
milliseconds, `_gib` GiB (2^30 bytes); `num_` is a count, a rate or ratio has no unit. None stands for what was not
measured or cannot be said, such as the drafted tokens of a peer. Fields with a default are those that earlier versions
did not write.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

FORMAT = 1
"""Version of the layout. It changes when a reader of the one before would misread a record, not for a new field."""
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
    process: bool = False
    """Whether it ran in a process of its own."""


@dataclass(frozen=True)
class PeerSoftware:
    """What a peer in a process of its own is."""

    software: str
    """Its name and version."""
    weights: str
    """What its weights are, in words."""
    is_another_model: bool
    """Whether they are not the target's, so that its answers are not compared."""


@dataclass(frozen=True)
class Setup:
    """What was run, on what, with what."""

    command: str
    date: str
    """YYYY-MM-DD, in UTC."""
    commit: str | None
    """Of this package; None: an installed one."""
    versions: dict[str, str]
    """By package."""
    hardware: str
    """Name of the GPU, or of the processor with its number of cores."""
    device: str
    """As PyTorch calls it."""
    threads: int | None
    """Of PyTorch on a CPU."""
    dtype: str
    """Of the target's weights."""
    model: str
    """What the user calls it."""
    target: str | None
    """Hash of the target's weights."""
    num_parameters: int | None
    entrants: list[Entrant]
    """In the order of the tables."""
    temperatures: list[float]
    tasks: list[str]
    prompts_per_task: int | None
    max_new_tokens: int
    """Tokens of an answer at most."""
    max_prompt_tokens: int | None
    """Longer prompts were cut; None: to what the context leaves."""
    samples: int
    """Answers to each prompt at temperatures above 0."""
    repeats: int
    """How often each answer was timed; the median counts."""
    seed: int
    top_p: float | None
    """Nucleus of sampled answers; None: all tokens."""
    data: str
    """What the questions came from."""
    verification: str = "coupled"
    """How sampled drafts are verified."""
    judge: str = "auto"
    """Whether answers that differ are generated again in float64."""
    runtime: str = "eager"
    """How passes of the target and of draft models are run: eager or compiled."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Peers that do not apply to the target, and why."""
    peers: dict[str, PeerSoftware] = field(default_factory=dict)
    """Those in processes of their own, by entrant."""
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
    """Differ, and were not judged."""

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
    """Emitted."""
    num_cycles: int | None
    """Passes of the target that emitted tokens."""
    num_drafted: int | None
    """Drafted tokens that the target verified."""
    num_accepted: int | None
    """Those that were kept."""
    accept_lengths: list[int] | None
    """Entry k: cycles that emitted k tokens."""
    tau: float | None
    """Mean number of tokens that a cycle emitted."""
    num_repeated: int
    """4-grams of answers that had occurred in the answer before."""
    num_ngrams: int
    """All 4-grams of answers."""
    repetition_rate: float | None
    """num_repeated / num_ngrams."""
    total_s: float
    """Wall time of the answers, prefill included."""
    prefill_s: float | None
    tokens_per_second: float | None
    """num_tokens / total_s."""
    ms_per_token: Spread | None
    """Over answers."""
    ratio_to_plain: float | None
    """tokens_per_second over plain decoding's of the same run."""
    ratio_to_transformers: float | None
    """tokens_per_second over that of transformers' plain decoding in the same run."""
    ratio_to_plain_spread: Spread | None
    """Over answers: plain decoding's seconds a token over this entrant's for the same answer."""
    efficiency: float | None
    """ratio_to_plain / tau: 1 if a cycle cost no more than plain decoding's."""
    cycle_ms: CycleMs | None
    memory_peak_gib: float | None
    """The most that the process or device held during an answer."""
    memory_growth_gib: float | None
    """The most that an answer added to what was held before it."""
    verdicts: Verdicts | None
    """None where answers cannot be compared token by token."""


@dataclass(frozen=True, kw_only=True)
class CalibrationCounts:
    """Nodes whose parent was accepted, by the drafter's confidence in them in equal bins of [0, 1]."""

    num_nodes: list[int]
    num_accepted: list[int]
    confidence: list[float]
    """Sum over the bin's nodes."""
    expected_calibration_error: float | None
    """Mean gap between acceptance and confidence in a node's bin."""


@dataclass(frozen=True, kw_only=True)
class Calibration(CalibrationCounts):
    """Those of one entrant at one temperature."""

    entrant: str
    temperature: float


@dataclass(frozen=True)
class Place:
    """How one position of the draft tree fared."""

    num_nodes: list[int]
    """Cycles that had it, by the confidence of the path to it: [1/2, 1], [1/4, 1/2), ..., the last takes the rest."""
    num_accepted: list[int]
    """Those in which it and all its ancestors were accepted."""
    num_reached: int
    """Cycles in which its parent was accepted."""
    acceptance: float
    """Accepted / cycles that had it."""
    acceptance_if_reached: float
    """Accepted / cycles in which its parent was."""
    acceptance_when_sure: float
    """In the third of cycles in which the drafter was surest."""
    acceptance_when_unsure: float


@dataclass(frozen=True)
class Positions:
    """The positions P1..P6 of an entrant's trees."""

    entrant: str
    temperature: float
    positions: dict[str, Place]


@dataclass(frozen=True, kw_only=True)
class DepthCounts:
    """Acceptance by depth. Index 0 is depth 1."""

    num_reached: list[int]
    """Cycles whose tree had a node at the depth under an accepted parent."""
    num_accepted: list[int]
    """Those that accepted one."""


@dataclass(frozen=True, kw_only=True)
class Depths(DepthCounts):
    """Those of one entrant at one temperature."""

    entrant: str
    temperature: float


@dataclass(frozen=True, kw_only=True)
class TreeCounts:
    """What the trees of one answer say of the drafter (`slipstream.bench.tree_statistics`)."""

    num_cycles: int
    """Cycles with a tree."""
    calibration: CalibrationCounts
    positions: dict[str, Place]
    depths: DepthCounts


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


@dataclass(frozen=True, kw_only=True)
class Picture:
    """The draft tree of one real cycle."""

    root: str
    nodes: list[Node]
    next: str
    """What the target said after the accepted path."""
    cycle: int | None = None
    """Of the answer, counted from 0."""
    prefix: str = ""
    """The last words before the root."""


@dataclass(frozen=True, kw_only=True)
class CycleTree(Picture):
    """One, with what was answered by whom."""

    entrant: str
    temperature: float
    task: str
    prompt_id: int | str
    turn: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One line of the journal: an entrant's answer to one turn of a prompt."""

    task: str
    prompt_id: int | str
    category: str
    turn: int
    """0-based."""
    sample: int
    """0-based, of the answers at this temperature."""
    temperature: float
    num_prompt_tokens: int
    num_tokens_cut: int
    """Tokens that the prompt lost to fit."""
    entrant: str
    token_ids: list[int]
    text: str
    seconds: list[float]
    """Wall time of every repeat, prefill included."""
    num_cycles: int
    num_drafted: int
    num_accepted: int
    accept_lengths: list[int]
    """Entry k: cycles that emitted k tokens."""
    prefill_s: float
    cycle_ms: CycleMs
    """All 0 for a peer, whose parts are not known."""
    memory_peak_gib: float | None
    memory_growth_gib: float | None
    verdict: str | None
    """Against plain decoding; None where answers cannot be compared token by token."""
    first_difference: int | None
    """Index of the first generated token that differs from plain decoding's."""
    trees: TreeCounts | None = None
    """None where nothing was drafted."""
    picture: Picture | None = None
    """Of a task's first answer."""


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

    run: Setup
    wall_s: float
    """Of all finished prompts, float64 judging included, warm-up not."""
    complete: bool
    num_prompts_done: int
    num_prompts: int
    tasks: dict[str, Task]
    """Task: how much of it was run."""
    rows: list[Row]
    """By task, entrant and temperature."""
    verify_cost: list[list[float]]
    """Pairs: rows of a target pass, seconds."""
    calibration: list[Calibration]
    positions: list[Positions]
    depths: list[Depths]
    trees: list[CycleTree]
    """Of real cycles, to be drawn."""
    faults: list[Fault]
    """All answers that are not plain decoding's, whatever the verdict."""

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
