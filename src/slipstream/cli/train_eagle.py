"""`slipstream train eagle`: a draft head for methods eagle2 and eagle."""

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

PAPER, AHEAD, RUN = "As the paper", "Beyond the paper", "The run"


def eagle(
    model: options.Model,
    data: Data,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            callback=check_out_folder,
            metavar="DIR",
            help="The head, its log, and the state for resuming.",
        ),
    ],
    answers: Answers = "target",
    answer_tokens: AnswerTokens = 256,
    answer_temperature: AnswerTemperature = 0.0,
    limit: Limit = None,
    epochs: Annotated[float, typer.Option("--epochs", rich_help_panel=PAPER, help="Passes over the data.")] = 20.0,
    steps: Annotated[
        int | None, typer.Option("--steps", rich_help_panel=PAPER, help="Optimizer steps, instead of --epochs.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", rich_help_panel=PAPER, help="Dialogues a step on each device, instead of --tokens-per-step."
        ),
    ] = None,
    max_length: Annotated[
        int, typer.Option("--max-length", rich_help_panel=PAPER, help="Longer dialogues are cut to so many tokens.")
    ] = 2048,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate", rich_help_panel=PAPER, help="Peak; by default 3e-5 to 1e-3 by the target's width."
        ),
    ] = None,
    warmup_steps: Annotated[
        int, typer.Option("--warmup-steps", rich_help_panel=PAPER, help="At most a tenth of the run.")
    ] = 2000,
    noise: Annotated[
        float, typer.Option("--noise", rich_help_panel=PAPER, help="Half width of the noise on features.")
    ] = 0.1,
    fc_bias: Annotated[
        bool, typer.Option("--fc-bias/--no-fc-bias", rich_help_panel=PAPER, help="Bias of the input projection.")
    ] = True,
    steps_ahead: Annotated[
        int, typer.Option("--steps-ahead", rich_help_panel=AHEAD, help="Train on own features so many steps deep.")
    ] = 1,
    loss_vocabulary: Annotated[
        int | None,
        typer.Option(
            "--loss-vocabulary",
            min=4,
            rich_help_panel=AHEAD,
            help="Estimate the loss from so many tokens, e.g. 8192; all by default.",
        ),
    ] = None,
    initial_head: Annotated[
        str | None, typer.Option("--from", metavar="HEAD", rich_help_panel=RUN, help="Start from this head's weights.")
    ] = None,
    tokens_per_step: Annotated[
        int, typer.Option("--tokens-per-step", rich_help_panel=RUN, help="Tokens a step on each device, at most.")
    ] = 2048,
    precision: Annotated[
        str, typer.Option("--precision", rich_help_panel=RUN, help="fp32, bf16, or auto: as suits target and device.")
    ] = "auto",
    cache_gib: Annotated[
        float, typer.Option("--cache-gib", rich_help_panel=RUN, help="Keep features on disk up to this size.")
    ] = 0.0,
    report_every: Annotated[
        int, typer.Option("--report-every", rich_help_panel=RUN, help="Steps between measurements and checkpoints.")
    ] = 100,
    held_out: Annotated[
        int, typer.Option("--held-out", rich_help_panel=RUN, help="Dialogues kept back for measurements.")
    ] = 16,
    seed: Annotated[int, typer.Option("--seed", rich_help_panel=RUN, help="Of weights, order and noise.")] = 0,
    minutes: Minutes = None,
    nice: Nice = 0,
    dtype: options.Dtype = None,
    device: options.Device = None,
    verbose: options.Verbose = False,
) -> None:
    """Train an EAGLE head for a target. The same command continues a run that was interrupted.

    On several GPUs: accelerate launch -m slipstream train eagle ...

    Example: slipstream train eagle -m Qwen/Qwen3-8B --data dialogues.jsonl --out heads/qwen3 --precision bf16
    """
    from slipstream.methods.eagle.settings import EagleSettings
    from slipstream.training.runs import EagleRun

    lower_priority(nice)
    settings = EagleSettings(
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        tokens_per_step=tokens_per_step,
        loss_vocabulary=loss_vocabulary,
        initial_head=initial_head,
        held_out=held_out,
        max_length=max_length,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        noise=noise,
        fc_bias=fc_bias,
        steps_ahead=steps_ahead,
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
    run = EagleRun(target, dialogues, out, settings)
    finish(run, model, "eagle2", minutes=minutes)
