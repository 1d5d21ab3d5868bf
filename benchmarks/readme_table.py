"""Writes the README's table of measurements from the record of a run.

    python benchmarks/readme_table.py benchmarks/records/bench-smollm2-bf16.json --brief [--check]
    python benchmarks/readme_table.py benchmarks/records/bench-demo-cpu.json --readme docs/tiny-model.md [--check]

Replaces what stands between the marks `<!-- bench:begin -->` and `<!-- bench:end -->`. With --check nothing is written:
the exit code is 1 if the README is not what the record gives, so that no number in it is without a record. --brief
leaves out the command, which the record holds, and notes.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from slipstream.errors import InputError
from slipstream.records.record import load_record
from slipstream.records.schema import ALL, Record
from slipstream.report import summary
from slipstream.report.markdown import markdown, reading
from slipstream.report.names import temperature_name
from slipstream.report.tables import Column, Table, eagle_table, verdicts_text

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def main(arguments: list[str] | None = None) -> int:
    """Rewrite the table, or say whether it is what the record gives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    parser.add_argument("--brief", action="store_true", help="tables, and where they come from, alone")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the README has another table")
    options = parser.parse_args(arguments)
    try:
        old = options.readme.read_text(encoding="utf-8")
        new = with_table(
            old, block(load_record(options.record), link(options.record, options.readme), brief=options.brief)
        )
    except (OSError, InputError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not options.check:
        options.readme.write_text(new, encoding="utf-8")
    elif new != old:
        command = f"python benchmarks/readme_table.py {options.record} --readme {options.readme}"
        command += " --brief" if options.brief else ""
        print(f"{options.readme} is not what {options.record} gives; run: {command}", file=sys.stderr)
        return 1
    return 0


def link(record: Path, readme: Path) -> str:
    """The record's path as seen from the README."""
    return Path(os.path.relpath(record.resolve(), readme.resolve().parent)).as_posix()


def with_table(text: str, table: str) -> str:
    """The README with another block between its marks. Raises InputError unless both stand there once, in order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise InputError(f"the README must hold {BEGIN} and {END} once each, in this order")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"


def block(record: Record, path: str, *, brief: bool = False) -> str:
    """What stands between the marks: where the figures come from, what came out, and a table a temperature."""
    if brief:
        text = f"{summary.setting(record)} {sentence(summary.provenance(record))} The command stands in"
        return f"{text} [the record]({path}).{tables(record)}"
    parts = [
        f"{summary.setting(record)} {sentence(summary.provenance(record))} From [the record]({path}), made by",
        "\n".join(f"    {line}" for line in record.run.command.splitlines()),
        *(f"- {line}" for line in summary.headlines(record)),
        *(f"- {note.text}" for note in summary.notes(record)),
    ]
    text = "\n\n".join(parts[:2]) + "\n\n" + "\n".join(parts[2:])
    return text + tables(record)


def tables(record: Record) -> str:
    """A table a temperature, and what its words mean."""
    text = ""
    for temperature in record.temperatures:
        table = with_identity(eagle_table(record, temperature), record)
        text += f"\n\n**{temperature_name(temperature)}** ({reading(table)})\n\n{markdown(table)}"
    notes = eagle_table(record, record.temperatures[0]).notes if record.temperatures else ()
    return text + "\n\n" + " ".join(notes) + " Names that begin with `hf-` are `transformers`' own `generate`."


def with_identity(table: Table, record: Record) -> Table:
    """The table with one more column: how many answers are identical to plain decoding's."""
    rows = []
    for row in table.rows:
        found = record.row(ALL, str(row["method"]), table.temperature)
        rows.append({**row, "verdicts": found.verdicts if found else None})
    return replace(table, columns=[*table.columns, Column("verdicts", "identical to plain", verdicts_text)], rows=rows)


def sentence(text: str) -> str:
    """A text that begins with a capital."""
    return text[:1].upper() + text[1:]


if __name__ == "__main__":
    sys.exit(main())
