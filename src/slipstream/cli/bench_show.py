"""`slipstream bench show`: the tables of a benchmark run in the terminal, as Markdown or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli import options
from slipstream.cli.bench_files import record_of
from slipstream.errors import InputError, unknown_choice

if TYPE_CHECKING:
    from rich.console import Console

    from slipstream.records.schema import Record
    from slipstream.report.tables import Column, Table

NARROW = 9
"""Characters of a column that a heading may take even if the values under it need less."""


def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, or its record.json.")],
    layout: Annotated[
        str,
        typer.Option(
            "--layout",
            metavar="LAYOUT",
            help="eagle: speed-up and tau by task, as in the EAGLE-2 paper; spec-bench: as on Spec-Bench's "
            "leaderboard; details: speed, time of a cycle, identity and memory.",
        ),
    ] = "eagle",
    temperature: Annotated[
        float | None, typer.Option("--temperature", "-t", help="Only this one; default: all of the run.")
    ] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown tables.")] = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Show the tables of a benchmark run.

    Speed-ups are tokens per second over those of `plain` in the same run. tau is the mean number of tokens that a pass
    of the target emitted.

    Example: slipstream bench show runs/demo --layout spec-bench -t 0
    """
    from slipstream.report.tables import LAYOUTS, table_json, tables

    if as_markdown and as_json:
        raise InputError("--markdown and --json exclude each other; leave one out")
    chosen = next((one for one in LAYOUTS if one == layout), None)
    if chosen is None:
        raise unknown_choice("layout", layout, LAYOUTS)
    record = record_of(run)
    found = tables(record, chosen, _temperatures(record, temperature))
    if as_json:
        print(json.dumps({"layout": layout, "tables": [table_json(table) for table in found]}))
    elif as_markdown:
        _print_markdown(found)
    else:
        _print(record, found)


def show_record(record: Record) -> None:
    """Print a run's tables in the EAGLE-2 paper's layout."""
    from slipstream.report.tables import tables

    _print(record, tables(record, "eagle", record.temperatures))


def _temperatures(record: Record, asked: float | None) -> list[float]:
    """Those to show. Raises InputError for one that was not run, or if there are no answers yet."""
    if not record.temperatures:
        raise InputError("the record holds no answers yet; go on with `slipstream bench run --resume`")
    if asked is None:
        return record.temperatures
    if asked not in record.temperatures:
        known = ", ".join(f"{one:g}" for one in record.temperatures)
        raise InputError(f"temperature {asked:g} was not run; the record has {known}")
    return [asked]


# Markdown


def _print_markdown(tables: Sequence[Table]) -> None:
    from slipstream.report.markdown import markdown, reading
    from slipstream.report.names import temperature_name

    for table in tables:
        cells = f" ({reading(table)})" if reading(table) else ""
        print(f"**{table.title}, {temperature_name(table.temperature)}**{cells}\n")
        print(f"{markdown(table)}\n\n{' '.join(table.notes)}\n")


# Terminal


def _print(record: Record, tables: Sequence[Table]) -> None:
    """The setting, the tables with what they mean, what came out, and what to beware of."""
    from rich.console import Console

    from slipstream.report import summary
    from slipstream.report.names import temperature_name

    console = Console(highlight=False, markup=False)
    console.print(f"{summary.setting(record)}\n{summary.provenance(record)}", style="dim")
    for table in tables:
        console.print(f"\n{table.title}, {temperature_name(table.temperature)}", style="bold")
        _print_table(console, table)
    for line in dict.fromkeys(note for table in tables for note in table.notes):
        console.print(line, style="dim")
    console.print()
    for line in summary.headlines(record):
        console.print(line)
    for note in summary.notes(record):
        console.print(f"Note: {note.text}", style="bold red" if note.severe else "yellow")
    console.print(f"\n{summary.best_here(record)}", style="bold")


def _print_table(console: Console, table: Table) -> None:
    """A table, in as many parts as its columns need at this width; each names the rows again."""
    from rich import box
    from rich.table import Table as RichTable

    blocks = [_block(table, group, columns) for group, columns in _groups(table)]
    for part in _parts(blocks, console.width):
        drawn = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for number, (heading, *_) in enumerate(part):
            drawn.add_column(heading, justify="left" if number == 0 else "right", no_wrap=True, vertical="bottom")
        for row in list(zip(*part, strict=True))[1:]:
            drawn.add_row(*row)
        console.print(drawn)


def _groups(table: Table) -> list[tuple[str, list[Column]]]:
    from slipstream.report.tables import header_groups

    return header_groups(table.columns)


def _block(table: Table, group: str, columns: Sequence[Column]) -> list[str]:
    """The columns of a group as one: its heading, then a cell a row, values under their own headings."""
    cells = [[column.heading, *(column.text(row) for row in table.rows)] for column in columns]
    if not group:
        heading, *values = cells[0]
        return [_wrapped(heading, max(map(len, values), default=0)), *values]
    widths = [max(map(len, column)) for column in cells]
    lines = [
        " ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in zip(*cells, strict=True)
    ]
    return [f"{group.center(len(lines[0])).rstrip()}\n{lines[0]}", *lines[1:]]


def _wrapped(heading: str, width: int) -> str:
    """A heading on several lines, no wider than its column's values need, or than `NARROW`."""
    return "\n".join(wrap(heading, max(width, NARROW), break_long_words=False, break_on_hyphens=False))


def _parts(blocks: Sequence[list[str]], width: int) -> Iterator[list[list[str]]]:
    """The blocks in parts that fit into the width, the first block in front of each."""
    names, *others = blocks
    part, used = [names], _width(names)
    for block in others:
        if len(part) > 1 and used + _width(block) > width:
            yield part
            part, used = [names], _width(names)
        part.append(block)
        used += _width(block)
    yield part


def _width(block: Sequence[str]) -> int:
    """Columns of the terminal that a block takes, with the gap beside it."""
    return 2 + max(len(line) for cell in block for line in cell.split("\n"))
