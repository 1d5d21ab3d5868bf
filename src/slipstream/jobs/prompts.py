"""The prompts of a job: one a row, JSON lines or Parquet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slipstream.errors import InputError

FIELDS = ("prompt", "messages", "token_ids")
"""Where a row has its prompt: a text or messages, messages, token ids."""
_PARQUET = ".parquet"


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt."""

    id: str | int
    """The row's `id`; its number from 1 on where it has none."""
    prompt: Any
    """As `Model.generate` takes it."""

    def seed(self, seed: int) -> int:
        """The seed of its answer in a job of this seed: it hangs on the id alone, not on who answers or when."""
        digest = hashlib.sha256(json.dumps([seed, self.id]).encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1


def read_rows(path: Path) -> list[Row]:
    """All rows of a file. Raises InputError for one that cannot be read, and for two rows of one id."""
    rows: list[Row] = []
    places: dict[str | int, int] = {}
    for number, record in enumerate(_records(path), 1):
        row = _row(record, number, f"{path}, row {number}")
        if row.id in places:
            raise InputError(
                f"{path}: rows {places[row.id]} and {number} have the same id {row.id!r}; give each its own"
            )
        places[row.id] = number
        rows.append(row)
    if not rows:
        raise InputError(f'{path} holds no prompts; give one a line, such as {{"id": 1, "prompt": "Hello"}}')
    return rows


def rows_hash(rows: Sequence[Row]) -> str:
    """Of ids and prompts."""
    return hashlib.sha256(json.dumps([[one.id, one.prompt] for one in rows]).encode()).hexdigest()[:16]


def _row(record: Any, number: int, place: str) -> Row:
    if not isinstance(record, Mapping):
        raise InputError(f'{place} is no object; give one such as {{"id": 1, "prompt": "Hello"}}')
    name = record.get("id")
    identifier = number if name is None else name
    if isinstance(identifier, bool) or not isinstance(identifier, str | int):
        raise InputError(f"{place}: id is {identifier!r}; it must be a text or a whole number")
    there = [field for field in FIELDS if record.get(field) is not None]
    if len(there) != 1:
        raise InputError(f"{place} has {' and '.join(there) or 'no prompt'}; give one of {', '.join(FIELDS)}")
    prompt = record[there[0]]
    kinds = {"prompt": (str, list), "messages": (list,), "token_ids": (list,)}[there[0]]
    if not isinstance(prompt, kinds) or not prompt:
        raise InputError(f"{place}: {there[0]} is {prompt!r}; see `slipstream answer --help` for its form")
    return Row(identifier, prompt)


def _records(path: Path) -> Iterator[Any]:
    if path.suffix == _PARQUET:
        yield from _parquet(path)
        return
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield json.loads(line)
                    except ValueError as error:
                        raise InputError(f"{path}, line {number} is not valid JSON: {error}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from error


def _parquet(path: Path) -> list[Any]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError:
        raise InputError("Parquet files need pyarrow: pip install pyarrow; or give JSON lines") from None
    try:
        found: list[Any] = read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    return found
