"""`slipstream answer`: answers to a file of prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from slipstream.cli import options
from slipstream.cli.answering import note
from slipstream.cli.from_settings import options_from_settings
from slipstream.cli.loading import load
from slipstream.cli.options import given, parse_further
from slipstream.cli.outputs import check_out_file
from slipstream.errors import InputError, SlipstreamError
from slipstream.share import ALONE, Share

if TYPE_CHECKING:
    from slipstream import Model
    from slipstream.jobs.job import Done, Report
    from slipstream.jobs.prompts import Row

    Load = Callable[[], Model]
    Describe = Callable[[Model], dict[str, Any]]

SHARING = "Workers"
_NOTES = 10
"""Lines of progress where there is no terminal."""
_ANY_CLUSTER = "any"
"""What `--ray` stands for without an address."""


class OptionalAddress(TyperCommand):
    """A command whose `--ray` may stand without a value, which typer has no word for."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """With the address left out filled in."""
        filled: list[str] = []
        for word, after in zip(args, [*args[1:], "-"], strict=True):
            filled += [word, _ANY_CLUSTER] if word == "--ray" and after.startswith("-") else [word]
        return super().parse_args(ctx, filled)


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
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="[ADDRESS]",
            rich_help_panel=SHARING,
            help="Share the work on a Ray cluster, one worker a GPU. ADDRESS is HOST:PORT; without it: the cluster "
            "that runs here or that RAY_ADDRESS names, else this machine alone.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            metavar="N",
            min=1,
            rich_help_panel=SHARING,
            help="With --ray: how many. Default: one a GPU; without GPUs one a machine.",
        ),
    ] = None,
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
    With --ray workers of a Ray cluster answer the rows; this machine alone reads and writes. A worker that dies is
    replaced, until the same row has killed three.

    Exit code 1 if a row could not be answered; its line says why.

    Example: slipstream answer -m Qwen/Qwen3-0.6B --in prompts.jsonl --out answers.jsonl -n 256
    """
    from slipstream.jobs.job import header
    from slipstream.jobs.prompts import read_rows

    share = Share.from_environment()
    _check_sharing(share, ray, workers, loading.device)
    rows = read_rows(prompts)
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
    placed = replace(loading, device=loading.device or share.own_gpu())
    begin = partial(load, model, drafter, option, **method, **asdict(placed), keep=0)
    describe = partial(header, name=model, options={**method, **parse_further(option)}, settings=settings, seed=seed)
    if ray:
        done, head = _on_ray(ray, begin, describe, rows, prompts, out, workers, loading.device)
    else:
        done, head = _here(begin, describe, rows, out, share)
    if not done.complete:
        note(f"process {share.rank} of {share.world_size} is done; the last one writes {out}")
        return
    note(f"{out}: {len(rows):,} answers; {head['note']}")
    if done.num_failed:
        raise SlipstreamError(f"{done.num_failed} of {len(rows)} rows could not be answered; their lines say why")


Result = tuple["Done", dict[str, Any]]
"""What a run of the job came to, and the job's header."""


def _here(loading: Load, describe: Describe, rows: Sequence[Row], out: Path, share: Share) -> Result:
    """By this process, which may be one of several."""
    from slipstream.jobs.job import answer_all

    loaded = loading()
    head = describe(loaded)
    with _progress(share) as report:
        return answer_all(loaded, rows, out, head, share=share, report=report), head


def _on_ray(
    address: str,
    loading: Load,
    describe: Describe,
    rows: Sequence[Row],
    prompts: Path,
    out: Path,
    workers: int | None,
    device: str | None,
) -> Result:
    """By workers of a cluster."""
    from slipstream.jobs.on_ray import Job, answer_all

    with _progress(ALONE) as report:
        return answer_all(
            Job(loading, describe, Path.cwd()),
            rows,
            out,
            file=prompts,
            address=None if address == _ANY_CLUSTER else address,
            num_workers=workers,
            on_gpus=device != "cpu",
            report=report,
        )


def _check_sharing(share: Share, ray: str | None, workers: int | None, device: str | None) -> None:
    """Raise InputError for options of `--ray` that contradict each other or the environment."""
    if ray is None:
        if workers is not None:
            raise InputError("--workers is about --ray; add that, or leave it out")
        return
    if share.world_size > 1:
        raise InputError("--ray starts workers itself; leave it out, or torchrun and accelerate launch")
    if device not in (None, "cpu", "cuda"):
        raise InputError(f"--device is {device}, but with --ray each worker has a GPU of its own; give cuda or cpu")


@contextmanager
def _progress(share: Share) -> Iterator[Report]:
    """A bar on stderr, of the first process; a few lines where there is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    shown = share.rank == 0 and console.is_terminal
    with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console, disable=not shown) as bar:
        task = bar.add_task("answers", total=None)
        noted = 0

        def report(num_done: int, num_rows: int) -> None:
            nonlocal noted
            bar.update(task, completed=num_done, total=num_rows)
            if share.rank == 0 and not shown and num_done - noted >= max(1, num_rows // _NOTES):
                noted = num_done
                note(f"{num_done:,} of {num_rows:,} answers")

        yield report
