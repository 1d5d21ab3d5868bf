"""`slipstream train draft`: a small draft model for method draft-model."""

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

SIZES, LOSS, RUN = "The draft model", "The loss", "The run"


def draft(
    model: options.Model,
    data: Data,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            callback=check_out_folder,
            metavar="DIR",
            help="The draft model, its log, and the state for resuming.",
        ),
    ],
    answers: Answers = "target",
    answer_tokens: AnswerTokens = 256,
    answer_temperature: AnswerTemperature = 0.0,
    limit: Limit = None,
    hidden_size: Annotated[
        int, typer.Option("--hidden-size", rich_help_panel=SIZES, help="Width of the residual stream.")
    ] = 192,
    num_layers: Annotated[int, typer.Option("--num-layers", rich_help_panel=SIZES, help="Decoder layers.")] = 2,
    num_heads: Annotated[int, typer.Option("--num-heads", rich_help_panel=SIZES, help="Query heads.")] = 4,
    num_kv_heads: Annotated[
        int, typer.Option("--num-kv-heads", rich_help_panel=SIZES, help="Key and value heads.")
    ] = 2,
    intermediate_size: Annotated[
        int, typer.Option("--intermediate-size", rich_help_panel=SIZES, help="Width of the MLP.")
    ] = 512,
    embeddings: Annotated[
        str,
        typer.Option(
            "--embeddings", metavar="KIND", rich_help_panel=SIZES, help="projected: from the target's; random."
        ),
    ] = "projected",
    prompt_weight: Annotated[
        float, typer.Option("--prompt-weight", rich_help_panel=LOSS, help="Weight of prompts; answers weigh 1.")
    ] = 0.5,
    epochs: Annotated[float, typer.Option("--epochs", rich_help_panel=RUN, help="Passes over the data.")] = 10.0,
    steps: Annotated[
        int | None, typer.Option("--steps", rich_help_panel=RUN, help="Optimizer steps, instead of --epochs.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", rich_help_panel=RUN, help="Dialogues a step on each device.")
    ] = 8,
    max_length: Annotated[
        int, typer.Option("--max-length", rich_help_panel=RUN, help="Longer dialogues are cut to so many tokens.")
    ] = 2048,
    learning_rate: Annotated[float, typer.Option("--learning-rate", rich_help_panel=RUN, help="Peak.")] = 3e-3,
    warmup_steps: Annotated[
        int, typer.Option("--warmup-steps", rich_help_panel=RUN, help="At most a tenth of the run.")
    ] = 200,
    precision: Annotated[str, typer.Option("--precision", rich_help_panel=RUN, help="fp32, bf16 or auto.")] = "fp32",
    cache_gib: Annotated[
        float,
        typer.Option("--cache-gib", rich_help_panel=RUN, help="Keep the target's features on disk up to this size."),
    ] = 0.0,
    report_every: Annotated[
        int, typer.Option("--report-every", rich_help_panel=RUN, help="Steps between measurements and checkpoints.")
    ] = 100,
    seed: Annotated[int, typer.Option("--seed", rich_help_panel=RUN, help="Of weights and order.")] = 0,
    minutes: Minutes = None,
    nice: Nice = 0,
    dtype: options.Dtype = None,
    device: options.Device = None,
    verbose: options.Verbose = False,
) -> None:
    """Train a small Llama on a target's own distributions. The same command continues a run that was interrupted.

    On several GPUs: accelerate launch -m slipstream train draft ...

    Example: slipstream train draft -m tiny --data dialogues.jsonl --out drafts/tiny --steps 3000
    """
    from slipstream.methods.draft_model.settings import DraftSettings
    from slipstream.training.runs import DraftRun

    lower_priority(nice)
    settings = DraftSettings(
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        intermediate_size=intermediate_size,
        embeddings=embeddings,
        prompt_weight=prompt_weight,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        max_length=max_length,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
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
    run = DraftRun(target, dialogues, out, settings, tokenizer)
    finish(run, model, "draft-model", minutes=minutes)
