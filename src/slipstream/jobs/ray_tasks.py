"""What Ray runs beside a job's workers: reading the prompts, writing the answers, and counting tries.

All of it is done on the machine of the command, so the others need not see its files. None of it needs a model, so
nothing here imports one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockAccessor, BlockMetadata
from ray.data.datasource import Datasink

from slipstream.errors import InputError, SlipstreamError
from slipstream.jobs.parts import add_piece
from slipstream.jobs.prompts import Row, read_rows, rows_hash

ROW, ANSWER = "row", "answer"
"""Columns of JSON texts: [id, prompt], and a line of the file. Columns of values would need one type for all rows."""
REFUSAL = "refusal"
"""In place of an answer: what a worker refuses, as [kind of error, text]. One that it raises would be hidden by Ray."""
ERRORS = {kind.__name__: kind for kind in (InputError, SlipstreamError)}


class Prompts(Datasource):
    """The rows of a file that are not answered yet, read as they always are.

    Ray's own readers change rows: `read_json` gives all of a column one type and reads times out of texts, `read_text`
    ends lines within texts, and neither numbers rows that have no id.
    """

    def __init__(self, file: Path, hash_of_all: str, left: Collection[str | int]) -> None:
        """hash_of_all: see `rows_hash`; left: ids."""
        super().__init__()
        self._file, self._hash = file.absolute(), hash_of_all
        self._left = ray.put(frozenset(left))  # a reading task that holds much makes Ray warn

    def estimate_inmemory_data_size(self) -> None:
        """Unknown: Ray would cut fewer pieces of a large file, of which few rows may be left."""

    @property
    def supports_distributed_reads(self) -> bool:
        return False

    def get_read_tasks(self, parallelism: int, *ignored: Any, **more: Any) -> list[ReadTask]:
        unknown = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [ReadTask(self._blocks, unknown)]

    def _blocks(self) -> Iterator[pa.Table]:
        rows = read_rows(self._file)
        if rows_hash(rows) != self._hash:
            raise InputError(f"{self._file} has changed since the job began; put it back, or choose another --out")
        left = ray.get(self._left)
        yield pa.table({ROW: [as_text(row) for row in rows if row.id in left]})


class Answers(Datasink[None]):
    """The folder of a job: a piece for each block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()

    @property
    def supports_distributed_writes(self) -> bool:
        return False

    def write(self, blocks: Iterable[Any], ctx: Any) -> None:
        """Raises what a worker refused, once the other answers are written."""
        rows = (row for block in blocks for row in BlockAccessor.for_block(block).iter_rows(public_row_format=True))
        found = [json.loads(row[ANSWER]) for row in rows]
        add_piece(self._folder, [one for one in found if REFUSAL not in one])
        for one in found:
            if REFUSAL in one:
                kind, text = one[REFUSAL]
                raise ERRORS[kind](text)


class Tries:
    """How often something was begun since it last came to an end. An actor of its own, so it outlives workers."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, what: str) -> int:
        """Which try this is, from 1 on."""
        self._begun[what] += 1
        return self._begun[what]

    def end(self, what: str) -> None:
        del self._begun[what]


def as_text(row: Row) -> str:
    """For a column."""
    return json.dumps([row.id, row.prompt])
