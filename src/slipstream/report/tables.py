"""The tables of a record as plain data; terminal, Markdown, JSON and page render them.

A speed-up is tokens per second over those of our own `plain` in the same run. tau is the mean number of tokens that a
pass of the target emitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from statistics import fmean
from typing import Any, Literal

from slipstream.records.schema import ALL, Record, Row, Spread, Verdicts
from slipstream.report.names import MISSING, task_name

Layout = Literal["eagle", "spec-bench", "details"]
LAYOUTS: tuple[Layout, ...] = ("eagle", "spec-bench", "details")

SPEED_UP = (
    "Speed-up (speed): tokens per second over those of plain, this package's own plain decoding, in the same run."
)
TAU = "tau: tokens per target pass."
TOKENS = "tokens/s: all tokens over all seconds, prefill included."

Cell = str | int | float | Spread | Verdicts | None


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its key in JSON, its heading, and how a value is written."""

    key: str
    heading: str
    form: str | Callable[[Any], str] = "{}"
    """Of `str.format`, or what writes it; for values that are known."""
    group: str = ""
    """A heading over this and its neighbours of the same group."""

    def text(self, row: Mapping[str, Cell]) -> str:
        """The cell of a row as people read it."""
        value = row[self.key]
        if value is None:
            return MISSING
        return self.form.format(value) if isinstance(self.form, str) else self.form(value)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows by column key. The first column names the row."""

    key: str
    title: str
    temperature: float
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Cell]]
    notes: Sequence[str]
    """What has to be known to read it."""


def tables(record: Record, layout: Layout, temperatures: Iterable[float]) -> list[Table]:
    """The tables of a layout, temperature by temperature."""
    make: Callable[[Record, float], list[Table]] = {
        "eagle": lambda record, temperature: [eagle_table(record, temperature)],
        "spec-bench": lambda record, temperature: [spec_bench_table(record, temperature)],
        "details": detail_tables,
    }[layout]
    return [table for temperature in temperatures for table in make(record, temperature)]


def eagle_table(record: Record, temperature: float) -> Table:
    """Table 1 of the EAGLE-2 paper (arXiv 2406.16858): speed-up and tau of every task, and their means over tasks.

    Beside them stands the speed itself, which a ratio does not tell.
    """
    tasks = record.measured_tasks
    columns = [_method(record)]
    for task in (*tasks, "mean"):
        columns.append(Column(f"{task}.speedup", "speed", "{:.2f}x", task_name(task)))
        columns.append(Column(f"{task}.tau", "tau", "{:.2f}", task_name(task)))
    columns.append(_TOKENS_PER_SECOND)
    rows = []
    for entrant in _entrants(record, temperature):
        found = [record.row(task, entrant, temperature) for task in tasks]
        cells: dict[str, Cell] = {"method": entrant}
        for task, row in zip(tasks, found, strict=True):
            cells[f"{task}.speedup"] = row.ratio_to_plain if row else None
            cells[f"{task}.tau"] = row.tau if row else None
        cells["mean.speedup"] = mean(row.ratio_to_plain if row else None for row in found)
        cells["mean.tau"] = mean(row.tau if row else None for row in found)
        cells["tokens_per_second"] = _tokens_per_second(record.row(ALL, entrant, temperature))
        rows.append(cells)
    notes = (SPEED_UP, TAU, "mean: of the tasks' figures, each task weighing the same.", TOKENS, *_other_models(record))
    return Table("eagle", "Speed-up and tau by task", temperature, columns, rows, notes)


def spec_bench_table(record: Record, temperature: float) -> Table:
    """Spec-Bench's leaderboard: speed-up by task, tau and speed of all answers together; fastest first."""
    tasks = record.measured_tasks
    columns = [
        _method(record),
        *(Column(f"{task}.speedup", task_name(task), "{:.2f}x") for task in tasks),
        Column("tau", "# mean accepted tokens", "{:.2f}"),
        Column("overall", "overall", "{:.2f}x"),
        _TOKENS_PER_SECOND,
    ]
    rows = []
    for entrant in _entrants(record, temperature):
        total = record.row(ALL, entrant, temperature)
        cells: dict[str, Cell] = {"method": entrant}
        for task in tasks:
            row = record.row(task, entrant, temperature)
            cells[f"{task}.speedup"] = row.ratio_to_plain if row else None
        cells["tau"] = total.tau if total else None
        cells["overall"] = total.ratio_to_plain if total else None
        cells["tokens_per_second"] = _tokens_per_second(total)
        rows.append(cells)
    rows.sort(key=lambda cells: -_number(cells["overall"]))
    notes = (
        SPEED_UP,
        "# mean accepted tokens: Spec-Bench's name for tau, the tokens per target pass, the target's own included.",
        "overall: all tokens over all seconds.",
        TOKENS,
        *_other_models(record),
    )
    return Table("spec-bench", "Spec-Bench's leaderboard layout, fastest first", temperature, columns, rows, notes)


def detail_tables(record: Record, temperature: float) -> list[Table]:
    """All answers together: speed, where a cycle's time goes, and what speaks for and against the figures."""
    rows = record.rows_of(ALL, temperature)
    found = [make(rows, temperature) for make in (_speed_table, _cycle_table, _evidence_table)]
    return [
        replace(one, columns=(_method(record), *one.columns), notes=(*one.notes, *_other_models(record)))
        for one in found
    ]


_TOKENS_PER_SECOND = Column("tokens_per_second", "tokens/s", "{:.1f}")


def _tokens_per_second(row: Row | None) -> float | None:
    return row.tokens_per_second if row else None


def _method(record: Record) -> Column:
    """The column that names the row; another model is marked."""
    others = _names_of_other_models(record)
    return Column("method", "method", lambda name: f"{name} (another model)" if name in others else name)


def _names_of_other_models(record: Record) -> list[str]:
    return [name for name, peer in record.run.peers.items() if peer.is_another_model]


def _other_models(record: Record) -> list[str]:
    """A line for each entrant whose weights are not the target's."""
    return [
        f"{name}: another model, with other weights: {record.run.peers[name].weights}. Its answers are not compared."
        for name in _names_of_other_models(record)
    ]


def _speed_table(rows: Sequence[Row], temperature: float) -> Table:
    columns = (
        _TOKENS_PER_SECOND,
        Column("ms_per_token", "ms a token", "{:.2f}"),
        Column("ratio_to_plain", "of sums", "{:.2f}x", "speed-up over plain"),
        Column("ratio_to_plain_spread", "median (quartiles)", spread_text, "speed-up over plain"),
        Column("ratio_to_transformers", "over hf-plain", "{:.2f}x"),
        Column("tau", "tau", "{:.2f}"),
        Column("efficiency", "efficiency", "{:.2f}"),
    )
    cells = [
        {
            "method": row.entrant,
            "tokens_per_second": row.tokens_per_second,
            "ms_per_token": row.ms_per_token.median if row.ms_per_token else None,
            "ratio_to_plain": row.ratio_to_plain,
            "ratio_to_plain_spread": row.ratio_to_plain_spread,
            "ratio_to_transformers": row.ratio_to_transformers,
            "tau": row.tau,
            "efficiency": row.efficiency,
        }
        for row in rows
    ]
    notes = (
        SPEED_UP,
        "of sums: all tokens over all seconds. median (quartiles): over answers, each paired with plain's to the same "
        "prompt. ms a token: median over answers.",
        "hf-plain: the generate function of transformers in the same run. efficiency: speed-up / tau, the share of "
        "the saved passes that became speed.",
    )
    return Table("speed", "Speed, all tasks together", temperature, columns, cells, notes)


def _cycle_table(rows: Sequence[Row], temperature: float) -> Table:
    parts = ("draft", "build", "verify", "sample", "host")
    columns = (
        *(Column(part, part, "{:.2f}", "mean ms of a cycle") for part in parts),
        Column("total", "sum", "{:.2f}", "mean ms of a cycle"),
        Column("num_drafted", "drafted a cycle", "{:.1f}"),
        Column("acceptance_rate", "kept of drafted", "{:.0%}"),
    )
    cells: list[dict[str, Cell]] = []
    for row in rows:
        if row.cycle_ms is None:
            continue
        times = {part: getattr(row.cycle_ms, part) for part in parts}
        cells.append(
            {
                "method": row.entrant,
                **times,
                "total": sum(times.values()),
                "num_drafted": share(row.num_drafted, row.num_cycles),
                "acceptance_rate": share(row.num_accepted, row.num_drafted),
            }
        )
    notes = (
        "A cycle drafts tokens and has the target check them in one pass. draft: the drafter's passes. build: masks "
        "and positions of the tree. verify: the target's pass. sample: its choices and the walk through the tree. "
        "host: all else. kept of drafted: the share of drafted tokens that was kept; of a tree at most one path can "
        "be. Peers do not report theirs.",
    )
    return Table("cycle", "Where the time of a cycle goes", temperature, columns, cells, notes)


def _evidence_table(rows: Sequence[Row], temperature: float) -> Table:
    columns = (
        Column("num_answers", "answers", "{:,}"),
        Column("num_tokens", "tokens", "{:,}"),
        Column("verdicts", "identical to plain", verdicts_text),
        Column("repetition_rate", "repetition", "{:.0%}"),
        Column("memory_peak_gib", "peak", "{:.2f}", "memory, GiB"),
        Column("memory_growth_gib", "growth", "{:.3f}", "memory, GiB"),
    )
    cells = [
        {
            "method": row.entrant,
            "num_answers": row.num_answers,
            "num_tokens": row.num_tokens,
            "verdicts": row.verdicts if row.verdicts and row.verdicts.total else None,
            "repetition_rate": row.repetition_rate,
            "memory_peak_gib": row.memory_peak_gib,
            "memory_growth_gib": row.memory_growth_gib,
        }
        for row in rows
    ]
    notes = (
        "identical: answers with the same token ids as plain's. Of the others, rounding: identical in float64; FAULT: "
        "not even there; differ: not generated again in float64. repetition: share of 4-grams that occurred before in "
        "the same answer; text that loops is easy to foresee. growth: memory above what was in use before the answer.",
    )
    return Table("evidence", "Identity, repetition and memory", temperature, columns, cells, notes)


def verdicts_text(verdicts: Verdicts) -> str:
    """As in "58 of 60, 2 rounding"."""
    rest = {"rounding": verdicts.rounding, "FAULT": verdicts.fault, "differ": verdicts.differs}
    others = "".join(f", {number} {name}" for name, number in rest.items() if number)
    return f"{verdicts.identical:,} of {verdicts.total:,}{others}"


def spread_text(spread: Spread) -> str:
    """As in "1.17x (1.02-1.31)"."""
    return f"{spread.median:.2f}x ({spread.q1:.2f}-{spread.q3:.2f})"


def mean(values: Iterable[float | None]) -> float | None:
    """The mean, unknown if one of the values is."""
    found = list(values)
    known = [one for one in found if one is not None]
    return fmean(known) if known and len(known) == len(found) else None


def share(part: int | None, whole: int | None) -> float | None:
    """The quotient, unknown where either is or the whole is nothing."""
    return part / whole if part is not None and whole else None


def table_json(table: Table) -> dict[str, Any]:
    """A table for JSON, its numbers unrounded."""
    rows = [{column.key: _json_value(row[column.key]) for column in table.columns} for row in table.rows]
    return {"table": table.key, "temperature": table.temperature, "notes": list(table.notes), "rows": rows}


def _json_value(cell: Cell) -> Any:
    return asdict(cell) if isinstance(cell, (Spread, Verdicts)) else cell


def header_groups(columns: Sequence[Column]) -> list[tuple[str, list[Column]]]:
    """Neighbouring columns of the same group together; columns without a group alone."""
    found: list[tuple[str, list[Column]]] = []
    for group, members in groupby(columns, key=lambda column: column.group):
        listed = list(members)
        found += [(group, listed)] if group else [("", [column]) for column in listed]
    return found


def _entrants(record: Record, temperature: float) -> list[str]:
    """Those that have an answer at the temperature, in order."""
    tasks = (*record.measured_tasks, ALL)
    return [
        entrant.name
        for entrant in record.run.entrants
        if any(record.row(task, entrant.name, temperature) for task in tasks)
    ]


def _number(cell: Cell) -> float:
    return float(cell) if isinstance(cell, (int, float)) else float("-inf")
