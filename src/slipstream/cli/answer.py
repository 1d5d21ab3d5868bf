"""`slipstream answer`: answers to a file of prompts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli import options
from slipstream.cli.answering import note
from slipstream.cli.from_settings import options_from_settings
from slipstream.cli.loading import load
from slipstream.cli.options import given, parse_further
from slipstream.cli.outputs import check_out_file
from slipstream.errors import SlipstreamError

if TYPE_CHECKING:
    from slipstream.jobs.job import Share

_NOTES = 10
"""Lines of progress where there is no terminal."""


@options_from_settings()
def answer(
    *,
    prompts: Annotated[
        Path,
        typer.Option(
            "--in",
            metavar="FILE",
            help='Prompts, one a row: JSON lines, or Parquet with pyarrow. {"id": ..., "prompt": text or messages}; '
            '"messages" or "token_ids" may stand in place of "prompt". Without an id a row goes by its number.',
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            callback=check_out_file,
            metavar="FILE",
            help="Answers as JSON lines, in the order of the prompts. What is done lies in FILE.parts until all are.",
        ),
    ],
    model: options.Model = "tiny",
    drafter: options.Method = "auto",
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    seed: Annotated[
        int,
        typer.Option(
            "--seed", rich_help_panel=options.SAMPLING, help="Each answer has one of its own, made of it and the id."
        ),
    ] = 0,
    repetition_penalty: options.RepetitionPenalty = None,
    stop: options.Stop = None,
    verification: options.Verification = "coupled",
    drafting: options.DraftingOptions,
    option: options.Further = None,
    loading: options.LoadingOptions,
    verbose: options.Verbose = False,
) -> None:
    """Answer every prompt of a file. The same command goes on where it was interrupted.

    Under torchrun or accelerate launch every process answers its share, each on its own GPU, and the last one writes
    the file. It holds the same bytes however many processes there were, as far as the note in FILE.job.json says.

    Exit code 1 if a row could not be answered; its line says why.

    Example: slipstream answer -m Qwen/Qwen3-0.6B --in prompts.jsonl --out answers.jsonl -n 256
    """
    from slipstream.jobs.job import Share, answer_all, header
    from slipstream.jobs.prompts import read_rows

    share, rows = Share.from_environment(), read_rows(prompts)
    method = given(verification=verification, **asdict(drafting))
    settings = given(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=stop or None,
    )
    loading = replace(loading, device=loading.device or _own_gpu(share))
    loaded = load(model, drafter, option, **method, **asdict(loading), keep=0)
    head = header(loaded, model, {**method, **parse_further(option)}, settings, seed)
    with _progress(share) as report:
        done = answer_all(loaded, rows, out, head, share=share, report=report)
    if not done.complete:
        note(f"process {share.rank} of {share.world_size} is done; others are not: the last one writes {out}")
        return
    note(f"{out}: {len(rows):,} answers; {head['note']}")
    if done.num_failed:
        raise SlipstreamError(f"{done.num_failed} of {len(rows)} rows could not be answered; their lines say why")


def _own_gpu(share: Share) -> str | None:
    """The GPU of this process among several, where there are any."""
    from torch import cuda

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if share.world_size > 1 and cuda.is_available() else None


@contextmanager
def _progress(share: Share) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, of the first process; a few lines where there is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    shown = share.rank == 0 and console.is_terminal
    with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console, disable=not shown) as bar:
        task = bar.add_task("answers", total=None)

        def report(num_done: int, num_rows: int) -> None:
            bar.update(task, completed=num_done, total=num_rows)
            if share.rank == 0 and not shown and num_done % max(1, num_rows // _NOTES) == 0:
                note(f"{num_done:,} of {num_rows:,} answers")

        yield report
