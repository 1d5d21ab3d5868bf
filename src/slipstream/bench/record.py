"""The record of a run: every figure that tables, charts and the README show, computed from the run's journal alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import combinations, zip_longest
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from slipstream.bench.repetition import Repetition, repetition
from slipstream.bench.settings import PLAIN
from slipstream.bench.tasks import TASKS
from slipstream.bench.tree_statistics import TreeTally
from slipstream.errors import ArtifactError
from slipstream.records.journal import Journal, read_answers
from slipstream.records.record import json_text, record_json
from slipstream.records.run_files import JOURNAL_FILE, RECORD_FILE, read_run
from slipstream.records.schema import (
    ALL,
    TRANSFORMERS,
    Answer,
    Calibration,
    CycleMs,
    CycleTree,
    Depths,
    Entrant,
    Fault,
    PeerSoftware,
    Picture,
    Place,
    Positions,
    Record,
    Row,
    Setup,
    Spread,
    Task,
    Verdicts,
)
from slipstream.runtime.clock import PARTS

VERDICTS = ("identical", "rounding", "fault", "differs")
_QUARTERS = 4

Asked = tuple[Any, ...]
"""What two entrants' answers must share to be compared: task, prompt, turn, sample, temperature."""


@dataclass(slots=True)
class Tally:
    """The answers of one entrant to one task at one temperature."""

    answers: list[Answer] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(len(one.token_ids) for one in self.answers)

    @property
    def total_s(self) -> float:
        return sum(map(seconds_of, self.answers))

    def sum(self, name: str) -> int:
        """A count, added up over answers."""
        return sum(getattr(one, name) for one in self.answers)

    def accept_lengths(self) -> list[int]:
        """The histogram over all cycles: entry k counts those that emitted k tokens."""
        histogram: list[int] = []
        for one in self.answers:
            histogram = [a + b for a, b in zip_longest(histogram, one.accept_lengths, fillvalue=0)]
        return histogram

    def repetition(self) -> Repetition:
        """n-grams of all answers."""
        found = Repetition()
        for one in self.answers:
            found = found.plus(repetition(one.token_ids))
        return found

    def cycle_ms(self) -> CycleMs:
        """Of a mean cycle."""
        cycles = max(1, self.sum("num_cycles"))
        sums = {part: sum(getattr(one.cycle_ms, part) * one.num_cycles for one in self.answers) for part in PARTS}
        return CycleMs(**{part: round(total / cycles, 4) for part, total in sums.items()})

    def largest(self, name: str) -> float | None:
        """The largest of a figure that the system may not tell."""
        return max((found for one in self.answers if (found := getattr(one, name)) is not None), default=None)

    def verdicts(self) -> Verdicts | None:
        """How many answers are what; None where they cannot be compared."""
        counts = Counter(one.verdict for one in self.answers if one.verdict is not None)
        return Verdicts(**{verdict: counts[verdict] for verdict in VERDICTS}) if counts else None


def write_record(folder: Path) -> Record:
    """Compute the record of a run and write it into its folder."""
    record = build_record(folder)
    (folder / RECORD_FILE).write_text(json_text(record_json(record)), encoding="utf-8")
    return record


def build_record(*folders: Path) -> Record:
    """The record of a run, or of several that differ in their tasks only, such as one for each machine of a kind.

    Shares of one run, as several processes made them, are such runs too.
    """
    runs = [read_run(folder) for folder in folders]
    first = runs[0]
    check_alike(folders, runs)
    answers = [one for folder in folders for one in read_answers(folder / JOURNAL_FILE)]
    journals = [Journal(folder / JOURNAL_FILE) for folder in folders]
    settings = first["settings"]
    known = list(TASKS)
    tasks = list(dict.fromkeys(task for run in runs for task in run["settings"]["tasks"]))
    tasks.sort(key=lambda task: known.index(task) if task in known else len(known))
    num_prompts = sum(sum(run["num_prompts"].values()) for run in runs)
    num_done = sum(len(journal.done) for journal in journals)
    heard = {one.entrant for one in answers}
    entrants = [Entrant(**one) for one in settings["entrants"] if one["name"] in heard]
    groups = _grouped(answers, tasks)
    run = {
        **{name: first[name] for name in _PROVENANCE},
        **{name: value for name, value in settings.items() if name != "questions_hash"},
        "command": "\n".join(run["command"] for run in runs),
        "entrants": entrants,
        "tasks": tasks,
        "continued": [one for run in runs for one in run.get("continued", [])],
        "left_out": {name: reason for run in runs for name, reason in run.get("left_out", {}).items()},
        "peers": {
            name: PeerSoftware(**one) for run in runs for name, one in run.get("peers", {}).items() if name in heard
        },
    }
    return Record(
        run=Setup(**run),
        wall_s=round(sum(journal.wall_s for journal in journals), 1),
        complete=num_done == num_prompts and _are_whole(runs),
        num_prompts_done=num_done,
        num_prompts=num_prompts,
        tasks={task: _task(answers, task) for task in tasks},
        rows=[_row(groups, *key) for key in groups],
        verify_cost=[[rows, round(one, 7)] for rows, one in first.get("verify_cost", [])],
        **_trees(answers, [one.name for one in entrants]),
        trees=[_tree(one, one.picture) for one in answers if one.picture is not None],
        faults=[
            Fault(**{name: getattr(one, name) for name in _FAULT})
            for one in answers
            if one.verdict is not None and one.verdict != "identical"
        ],
    )


_PROVENANCE = (
    *("command", "date", "commit", "versions", "hardware", "device", "runtime", "threads", "dtype", "model", "target"),
    "num_parameters",
)
_FAULT = ("entrant", "temperature", "task", "prompt_id", "turn", "sample", "first_difference", "verdict")


def check_alike(folders: Sequence[Path], runs: Sequence[Mapping[str, Any]]) -> None:
    """Several runs make one record only if they differ in nothing but their questions. Raises ArtifactError."""

    def decisive(run: Mapping[str, Any]) -> dict[str, Any]:
        settings = {k: v for k, v in run["settings"].items() if k not in ("tasks", "questions_hash", "data")}
        which = {name: run[name] for name in _PROVENANCE if name not in ("command", "date")}
        return {**which, "device": run["device"].partition(":")[0], **settings}

    for folder, run in zip(folders[1:], runs[1:], strict=True):
        here, there = decisive(runs[0]), decisive(run)
        if differing := next((name for name in here if here[name] != there.get(name)), None):
            raise ArtifactError(f"{folder} and {folders[0]} differ in {differing}; they cannot be one record")
    for (one, first), (other, second) in combinations(zip(folders, runs, strict=True), 2):
        doubled = set(first["settings"]["tasks"]) & set(second["settings"]["tasks"])
        if doubled and not _are_shares_of_one(first, second):
            raise ArtifactError(f"{other} and {one} both hold task {min(doubled)!r}; give each task once")


def _are_shares_of_one(run: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two processes made them, of those that shared a run."""
    (rank, size), (other_rank, other_size) = _share(run), _share(other)
    same = run["settings"]["questions_hash"] == other["settings"]["questions_hash"]
    return same and size == other_size and rank != other_rank


def _are_whole(runs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether no process's share is missing."""
    num_shares = Counter((run["settings"]["questions_hash"], _share(run)[1]) for run in runs)
    return all(number >= size for (_, size), number in num_shares.items())


def _share(run: Mapping[str, Any]) -> tuple[int, int]:
    """Rank and number of processes."""
    rank, size = run.get("share", (0, 1))
    return rank, size


def _grouped(answers: Iterable[Answer], tasks: Sequence[str]) -> dict[tuple[str, str, float], Tally]:
    """Answers by task (the tasks in order, then all together), entrant and temperature."""
    groups: dict[tuple[str, str, float], Tally] = {}
    for one in answers:
        for task in (one.task, ALL):
            groups.setdefault((task, one.entrant, one.temperature), Tally()).answers.append(one)
    order = {task: index for index, task in enumerate([*tasks, ALL])}
    return dict(sorted(groups.items(), key=lambda item: order[item[0][0]]))


def _task(answers: Iterable[Answer], task: str) -> Task:
    """What was asked: the distinct questions that have been answered, and how many prompts had to be cut."""
    cut: dict[tuple[Any, ...], int] = {}
    for one in answers:
        if one.task == task:
            cut[one.prompt_id, one.turn] = one.num_tokens_cut
    return Task(
        num_prompts=len({number for number, _ in cut}),
        num_turns=len(cut),
        num_truncated=sum(tokens > 0 for tokens in cut.values()),
    )


def _row(groups: Mapping[tuple[str, str, float], Tally], task: str, entrant: str, temperature: float) -> Row:
    tally = groups[task, entrant, temperature]
    plain, theirs = (groups.get((task, name, temperature)) for name in (PLAIN, TRANSFORMERS))
    cycles, tokens = tally.sum("num_cycles"), tally.num_tokens
    drafted = tally.sum("num_drafted")
    ours = any(one.cycle_ms.verify for one in tally.answers)
    repeated = tally.repetition()
    prefill_s = sum(one.prefill_s for one in tally.answers)
    tau = tokens / cycles if cycles else None
    ratio = _ratio(tally, plain)
    return Row(
        task=task,
        entrant=entrant,
        temperature=temperature,
        num_answers=len(tally.answers),
        num_tokens=tokens,
        num_cycles=cycles or None,
        num_drafted=drafted if ours else None,
        num_accepted=tally.sum("num_accepted") if ours else None,
        accept_lengths=tally.accept_lengths(),
        tau=_rounded(tau),
        num_repeated=repeated.num_repeated,
        num_ngrams=repeated.num_ngrams,
        repetition_rate=_rounded(repeated.rate),
        total_s=round(tally.total_s, 4),
        prefill_s=round(prefill_s, 4) if ours or prefill_s else None,
        tokens_per_second=_rounded(tokens / tally.total_s),
        ms_per_token=_spread([1000 * seconds_of(one) / len(one.token_ids) for one in tally.answers]),
        ratio_to_plain=_rounded(ratio),
        ratio_to_transformers=_rounded(_ratio(tally, theirs)),
        ratio_to_plain_spread=None if plain is None else _spread(list(_paired(tally, plain))),
        efficiency=None if ratio is None or tau is None else _rounded(ratio / tau),
        cycle_ms=tally.cycle_ms() if ours else None,
        memory_peak_gib=tally.largest("memory_peak_gib"),
        memory_growth_gib=tally.largest("memory_growth_gib"),
        verdicts=tally.verdicts(),
    )


def seconds_of(answer: Answer) -> float:
    """Wall seconds of an answer: the median of its repeats."""
    return float(median(answer.seconds))


def asked(answer: Answer) -> Asked:
    """What was asked."""
    return tuple(getattr(answer, name) for name in ("task", "prompt_id", "turn", "sample", "temperature"))


def _ratio(tally: Tally, other: Tally | None) -> float | None:
    """Tokens per second over another entrant's."""
    if other is None:
        return None
    return (tally.num_tokens / tally.total_s) / (other.num_tokens / other.total_s)


def _paired(tally: Tally, plain: Tally) -> Iterator[float]:
    """Plain decoding's seconds a token over this entrant's, answer by answer."""
    pace = {asked(one): seconds_of(one) / len(one.token_ids) for one in plain.answers}
    for one in tally.answers:
        yield pace[asked(one)] / (seconds_of(one) / len(one.token_ids))


def _spread(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    low, middle, high = quantiles(values, n=_QUARTERS, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return Spread(median=round(middle, 4), q1=round(low, 4), q3=round(high, 4))


def _trees(answers: Sequence[Answer], entrants: Sequence[str]) -> dict[str, list[Any]]:
    """Calibration, positions and depths by entrant and temperature, as fields of a record."""
    tallies: dict[tuple[str, float], TreeTally] = {}
    for one in answers:
        if one.trees is not None:
            tallies.setdefault((one.entrant, one.temperature), TreeTally()).merge(asdict(one.trees))
    found: dict[str, list[Any]] = {"calibration": [], "positions": [], "depths": []}
    for entrant, temperature in sorted(tallies, key=lambda key: (key[1], entrants.index(key[0]))):
        said = tallies[entrant, temperature].to_dict()
        named: dict[str, Any] = {"entrant": entrant, "temperature": temperature}
        found["calibration"].append(Calibration(**named, **said["calibration"]))
        if any(sum(one["num_nodes"]) for one in said["positions"].values()):
            places = {name: Place(**place) for name, place in said["positions"].items()}
            found["positions"].append(Positions(**named, positions=places))
        found["depths"].append(Depths(**named, **said["depths"]))
    return found


def _tree(answer: Answer, picture: Picture) -> CycleTree:
    """A picture with what it is of."""
    names = ("entrant", "temperature", "task", "prompt_id", "turn")
    shown = {one.name: getattr(picture, one.name) for one in fields(picture)}
    return CycleTree(**{name: getattr(answer, name) for name in names}, **shown)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
