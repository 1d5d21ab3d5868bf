"""`slipstream train answers`: the target answers the prompts of a corpus, for heads to be trained on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli import options
from slipstream.cli.answering import note
from slipstream.cli.outputs import check_out_file
from slipstream.cli.training_data import Data, load_target
from slipstream.cli.training_progress import left, training_bar


def answers(
    model: options.Model,
    data: Data,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            callback=check_out_file,
            metavar="FILE",
            help="JSON lines; an interrupted run goes on in it.",
        ),
    ],
    per_file: Annotated[
        int | None, typer.Option("--per-file", help="Prompts of each file at most, drawn by the seed.")
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option("--temperature", "-t", help="0: greedy; repeatable: prompts take turns. Default: 0 and 1."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="Tokens of an answer at most.")] = 256,
    max_prompt_tokens: Annotated[int, typer.Option("--max-prompt-tokens", help="Longer prompts are left out.")] = 1024,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Answers written at once.")] = 64,
    block: Annotated[int, typer.Option("--block", help="Answers after which the file is written to.")] = 512,
    part: Annotated[
        str, typer.Option("--part", metavar="K/N", help="Of N processes sharing the work this is the K-th.")
    ] = "1/1",
    seed: Annotated[int, typer.Option("--seed", help="Of choice and order of prompts, and of sampled answers.")] = 0,
    nice: Annotated[int, typer.Option("--nice", min=0, max=19, help="Lower the priority by so much.")] = 0,
    threads: options.Threads = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    verbose: options.Verbose = False,
) -> None:
    """Let the target answer prompts: training text for heads. The same command goes on with an interrupted run.

    Example: slipstream train answers -m Qwen/Qwen3-8B --data dialogues.jsonl --out answers.jsonl, then
    slipstream train eagle -m Qwen/Qwen3-8B --data answers.jsonl --answers data --out heads/qwen3
    """
    from rich.console import Console

    from slipstream.runtime.threads import check_threads
    from slipstream.training.data.answers import AnswerRun, AnswerSettings, plan

    check_threads(threads)
    settings = AnswerSettings(
        per_file=per_file,
        temperatures=tuple(temperature) if temperature else (0.0, 1.0),
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        batch_size=batch_size,
        block=block,
        part=_part(part),
        seed=seed,
    )
    if nice:
        os.nice(nice)
    target, tokenizer = load_target(model, dtype, device)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    run = AnswerRun(target, plan(data, tokenizer, settings), out, settings)
    note(f"{len(run.prompts)} prompts, {run.num_done} of them answered before")
    console = Console(stderr=True, highlight=False)
    with training_bar(console, "starting", disable=not console.is_terminal) as update:
        for done in run.blocks():
            line = f"{done.num_done} answers of {done.num_tokens:,} tokens, {done.tokens_per_s:.0f} tokens/s"
            update(done.num_done / done.num_prompts, done.left_s, line)
            if not console.is_terminal:
                console.print(f"{line}, {left(done.left_s)}", markup=False, soft_wrap=True)
    print(f"{out}: {run.num_done} answers of {run.num_tokens} tokens")


def _part(text: str) -> tuple[int, int]:
    k, slash, n = text.partition("/")
    if not (slash and k.isdigit() and n.isdigit()):
        raise typer.BadParameter(f"{text!r} is not of the form K/N, such as 1/2", param_hint="--part")
    return int(k), int(n)
