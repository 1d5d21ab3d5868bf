"""`slipstream train medusa`: draft heads for method medusa."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli import options
from slipstream.cli.outputs import check_out_folder
from slipstream.cli.training_data import (
    Answers,
    AnswerTemperature,
    AnswerTokens,
    Data,
    Limit,
    load_target,
    read_dialogues,
)
from slipstream.cli.training_progress import Minutes, Nice, finish, lower_priority

HEADS, LEARNING, RUN = "The heads", "Learning", "The run"


def medusa(
    model: options.Model,
    data: Data,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            callback=check_out_folder,
            metavar="DIR",
            help="The heads, their log, the state for resuming.",
        ),
    ],
    answers: Answers = "target",
    answer_tokens: AnswerTokens = 256,
    answer_temperature: AnswerTemperature = 0.0,
    limit: Limit = None,
    heads: Annotated[
        int, typer.Option("--heads", rich_help_panel=HEADS, help="Draft heads: how deep a tree can be.")
    ] = 5,
    layers: Annotated[
        int, typer.Option("--layers", rich_help_panel=HEADS, help="How often a head's residual block is applied.")
    ] = 1,
    own_lm_heads: Annotated[
        bool,
        typer.Option(
            "--own-lm-heads/--shared-lm-head",
            rich_help_panel=HEADS,
            help="One LM head per draft head, as published, or the target's for all, which keeps the file small.",
        ),
    ] = True,
    labels: Annotated[
        str,
        typer.Option(
            "--labels",
            metavar="KIND",
            rich_help_panel=LEARNING,
            help="text: the tokens that stand there, as published; target: the target's distributions.",
        ),
    ] = "text",
    epochs: Annotated[float, typer.Option("--epochs", rich_help_panel=LEARNING, help="Passes over the data.")] = 2.0,
    steps: Annotated[
        int | None, typer.Option("--steps", rich_help_panel=LEARNING, help="Optimizer steps, instead of --epochs.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", rich_help_panel=LEARNING, help="Dialogues a step on each device.")
    ] = 4,
    max_length: Annotated[
        int, typer.Option("--max-length", rich_help_panel=LEARNING, help="Longer dialogues are cut to so many tokens.")
    ] = 2048,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", rich_help_panel=LEARNING, help="Peak; it falls to zero.")
    ] = 2e-3,
    warmup_steps: Annotated[
        int, typer.Option("--warmup-steps", rich_help_panel=LEARNING, help="At most a tenth of the run.")
    ] = 40,
    head_decay: Annotated[
        float,
        typer.Option("--head-decay", rich_help_panel=LEARNING, help="Weight of a head's loss by the one before."),
    ] = 0.8,
    precision: Annotated[str, typer.Option("--precision", rich_help_panel=RUN, help="fp32, bf16 or auto.")] = "fp32",
    cache_gib: Annotated[
        float, typer.Option("--cache-gib", rich_help_panel=RUN, help="Keep features on disk up to this size.")
    ] = 0.0,
    report_every: Annotated[
        int, typer.Option("--report-every", rich_help_panel=RUN, help="Steps between measurements and checkpoints.")
    ] = 100,
    seed: Annotated[int, typer.Option("--seed", rich_help_panel=RUN, help="Of the order of the dialogues.")] = 0,
    minutes: Minutes = None,
    nice: Nice = 0,
    dtype: options.Dtype = None,
    device: options.Device = None,
    verbose: options.Verbose = False,
) -> None:
    """Train Medusa heads for a target. The same command continues a run that was interrupted.

    On several GPUs: accelerate launch -m slipstream train medusa ...

    Example: slipstream train medusa -m Qwen/Qwen3-8B --data dialogues.jsonl --out heads/qwen3-medusa --precision bf16
    """
    from slipstream.methods.medusa.settings import MedusaSettings
    from slipstream.training.runs import MedusaRun

    lower_priority(nice)
    settings = MedusaSettings(
        num_heads=heads,
        num_layers=layers,
        own_lm_heads=own_lm_heads,
        labels=labels,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        max_length=max_length,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        head_decay=head_decay,
        precision=precision,
        cache_gib=cache_gib,
        report_every=report_every,
        seed=seed,
    )
    target, tokenizer = load_target(model, dtype, device)
    how = {"max_new_tokens": answer_tokens, "temperature": answer_temperature, "seed": seed}
    dialogues = read_dialogues(
        target, tokenizer, data, out, answers=answers, how=how, limit=limit, max_length=max_length
    )
    run = MedusaRun(target, dialogues, out, settings)
    finish(run, model, "medusa", depth=heads, minutes=minutes)
