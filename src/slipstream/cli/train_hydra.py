"""`slipstream train hydra`: draft heads for method hydra."""

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


def hydra(
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
    ] = 4,
    layers: Annotated[int, typer.Option("--layers", rich_help_panel=HEADS, help="Residual blocks of a head.")] = 4,
    prefix: Annotated[
        bool,
        typer.Option(
            "--prefix/--no-prefix", rich_help_panel=HEADS, help="Attend to the text first: Hydra++, or Hydra."
        ),
    ] = True,
    prefix_size: Annotated[
        int | None,
        typer.Option("--prefix-size", rich_help_panel=HEADS, help="MLP width of that layer; default: the target's."),
    ] = None,
    own_lm_heads: Annotated[
        bool,
        typer.Option(
            "--own-lm-heads/--shared-lm-head",
            rich_help_panel=HEADS,
            help="One LM head per draft head, as published, or the target's for all, which keeps the file small.",
        ),
    ] = True,
    storage: Annotated[
        str, typer.Option("--storage", rich_help_panel=HEADS, help="Numbers in the saved file: fp32 or bf16.")
    ] = "fp32",
    epochs: Annotated[float, typer.Option("--epochs", rich_help_panel=LEARNING, help="Passes over the data.")] = 10.0,
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
        float, typer.Option("--learning-rate", rich_help_panel=LEARNING, help="Peak; it falls to a third.")
    ] = 5e-4,
    warmup_steps: Annotated[
        int, typer.Option("--warmup-steps", rich_help_panel=LEARNING, help="At most a tenth of the run.")
    ] = 100,
    dropout: Annotated[
        float, typer.Option("--dropout", rich_help_panel=LEARNING, help="Before every block and LM head.")
    ] = 0.2,
    weight_decay: Annotated[float, typer.Option("--weight-decay", rich_help_panel=LEARNING, help="Of AdamW.")] = 0.1,
    precision: Annotated[str, typer.Option("--precision", rich_help_panel=RUN, help="fp32, bf16 or auto.")] = "fp32",
    cache_gib: Annotated[
        float, typer.Option("--cache-gib", rich_help_panel=RUN, help="Keep features on disk up to this size.")
    ] = 0.0,
    report_every: Annotated[
        int, typer.Option("--report-every", rich_help_panel=RUN, help="Steps between measurements and checkpoints.")
    ] = 100,
    seed: Annotated[int, typer.Option("--seed", rich_help_panel=RUN, help="Of weights, order and dropout.")] = 0,
    minutes: Minutes = None,
    nice: Nice = 0,
    dtype: options.Dtype = None,
    device: options.Device = None,
    verbose: options.Verbose = False,
) -> None:
    """Train Hydra heads for a target. The same command continues a run that was interrupted.

    On several GPUs: accelerate launch -m slipstream train hydra ...

    Example: slipstream train hydra -m Qwen/Qwen3-8B --data dialogues.jsonl --out heads/qwen3-hydra --precision bf16
    """
    from slipstream.methods.hydra.settings import HydraSettings
    from slipstream.training.runs import HydraRun

    lower_priority(nice)
    settings = HydraSettings(
        num_heads=heads,
        num_layers=layers,
        prefix=prefix,
        prefix_size=prefix_size,
        own_lm_heads=own_lm_heads,
        storage=storage,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        max_length=max_length,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        dropout=dropout,
        weight_decay=weight_decay,
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
    run = HydraRun(target, dialogues, out, settings)
    finish(run, model, "hydra", depth=heads, minutes=minutes)
