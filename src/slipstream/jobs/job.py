"""Answering all prompts of a file with one model, as one process or as several that share the work.

Process r of n takes rows r, r + n, r + 2n, ... and skips what any process of an earlier run has answered. Answers hang
on their own row alone: each has a seed made from its id, and no keys are kept from row to row. So who answered what
does not show: in float64 never, in other dtypes unless sizes of drafts follow the clock or earlier texts, since passes
of other sizes round differently. The header says which it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import slipstream
from slipstream.errors import InputError
from slipstream.jobs.parts import Part, Parts
from slipstream.jobs.prompts import Row, rows_hash
from slipstream.model import Model
from slipstream.share import ALONE, Share

Work = Callable[[Sequence[Row], Part, Callable[[int], None]], None]
"""Answers rows, in any order, into a part or into pieces beside it; now and then it tells how many it has answered."""
Report = Callable[[int, int], None]
"""Told how many rows of the share are done, and how many there are."""

EXACT = "answers do not depend on which process gave them, nor on when"
ROUNDED = (
    "drafts are sized by the clock or by earlier texts, and passes of other sizes round differently: run again, an "
    "answer may differ; float64, plain or sizes that are given (--total N, -o length=N) rule that out"
)

COMPILED = (
    "layers are compiled beside the first passes, and compiled ones round differently: run again, an answer may "
    "differ; float64 or --runtime eager rule that out"
)


@dataclass(frozen=True, slots=True)
class Done:
    """What a run of a job came to."""

    num_answered: int
    """By this process, now."""
    num_failed: int
    """Of all answers that are there: rows that could not be answered, such as prompts that are too long."""
    complete: bool
    """Whether this process wrote the output file or had nothing to do; otherwise another writes it in the end."""


def header(
    model: Model, name: str, options: Mapping[str, Any], settings: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """What decides a job's answers. name: the model's; options: the method's; settings: of generation."""
    target = model.target
    return {
        "slipstream": slipstream.__version__,
        "model": name,
        "target": target.hash,
        "dtype": str(target.dtype).removeprefix("torch."),
        "runtime": target.executor.name,
        "method": model.method,
        "options": dict(options),
        "settings": dict(settings),
        "seed": seed,
        "note": _note(model),
    }


def _note(model: Model) -> str:
    """Whether answers are the same whenever and by whomever they are given."""
    if model.target.dtype == torch.float64:
        return EXACT
    if model.target.executor.varies:
        return COMPILED
    return ROUNDED if model.drafter.varies else EXACT


def answer_all(
    model: Model,
    rows: Sequence[Row],
    out: Path,
    header: Mapping[str, Any],
    *,
    share: Share = ALONE,
    report: Report = lambda num_done, num_rows: None,
) -> Done:
    """Answer a process's share of the rows and join all parts if they are complete.

    header: see `header`; its settings and seed are those of generation. Raises InputError where `out` belongs to
    another job.
    """

    def work(left: Sequence[Row], part: Part, tell: Callable[[int], None]) -> None:
        for number, row in enumerate(left, 1):
            part.add(answer(model, row, header))
            tell(number)

    return carry_out(work, rows, out, header, share=share, report=report)


def carry_out(
    work: Work,
    rows: Sequence[Row],
    out: Path,
    header: Mapping[str, Any],
    *,
    share: Share = ALONE,
    report: Report = lambda num_done, num_rows: None,
) -> Done:
    """As `answer_all`, whoever does the work."""
    parts = Parts(out, {**header, "prompts": rows_hash(rows), "num_prompts": len(rows)})
    if parts.begin():
        return Done(0, _num_failed(out), True)
    mine, there = share.of(rows), parts.done()
    left = [row for row in mine if row.id not in there]
    with parts.writing(share.rank, share.world_size) as part:
        work(left, part, lambda number: report(len(mine) - len(left) + number, len(mine)))
    complete = parts.join([row.id for row in rows])
    return Done(len(left), _num_failed(out) if complete else 0, complete)


def answer(model: Model, row: Row, header: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a row, or why there is none."""
    seed = row.seed(header["seed"])
    try:
        found = model.generate(row.prompt, seed=seed, **header["settings"])
    except InputError as error:
        return {"id": row.id, "error": str(error)}
    return {
        "id": row.id,
        "text": found.text,
        "token_ids": list(found.token_ids),
        "finish_reason": found.finish_reason,
        "seed": found.seed,
    }


def _num_failed(out: Path) -> int:
    with out.open(encoding="utf-8") as file:
        return sum("error" in json.loads(line) for line in file)
