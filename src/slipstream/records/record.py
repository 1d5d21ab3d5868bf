"""Reading a benchmark's record, checked, and writing it. What stands in it: `slipstream.records.schema`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slipstream.errors import InputError
from slipstream.records.run_files import RECORD_FILE
from slipstream.records.schema import ALL, FORMAT, Record
from slipstream.records.shapes import read_shape


def record_json(record: Record) -> dict[str, Any]:
    """A record as JSON has it: what `parse_record` reads."""
    return {"format": FORMAT, **asdict(record)}


def json_text(record: Mapping[str, Any]) -> str:
    """JSON with one line for everything that stands inside a list, so that versions of a record can be compared."""
    lines = []
    for key, value in record.items():
        if isinstance(value, list) and value:
            body = ",\n".join("  " + json.dumps(one, ensure_ascii=False) for one in value)
            lines.append(f" {json.dumps(key)}: [\n{body}\n ]")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def load_record(path: Path) -> Record:
    """The record in a file, or of a run's folder. Raises InputError saying what is missing or damaged."""
    file = path / RECORD_FILE if path.is_dir() else path
    if not file.is_file():
        hint = " (`slipstream bench run --resume` writes it)" if path.is_dir() else ""
        raise InputError(f"no record at {file}{hint}; give a run's folder or its {RECORD_FILE}")
    return parse_record(read_json(file), str(file))


def read_json(file: Path) -> Any:
    """What a JSON file holds. Raises InputError if it is damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is damaged: {error}") from error


def parse_record(data: Any, place: str = RECORD_FILE) -> Record:
    """The record of parsed JSON. place: what to call it in messages."""
    version = data.get("format") if isinstance(data, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise InputError(f"{place} is of format {version}, newer than this version reads ({FORMAT}); update slipstream")
    if version != FORMAT:
        raise InputError(
            f"{place} is no benchmark record of format {FORMAT} (its format is {version!r}): it is older or of another "
            "kind; run the benchmark anew"
        )
    if "run" not in data and "verdict" in data:
        raise InputError(f"{place} is a certificate of `slipstream certify`, not a benchmark's record")
    record = read_shape(Record, data, place)
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
