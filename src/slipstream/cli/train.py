"""`slipstream train`: drafters for a model of yours, text to train them on, and the demo models (`train_demo.py`).

What a drafter's training has options for, its settings class says; here stand the commands and what they share.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slipstream.cli import options, train_demo
from slipstream.cli.answering import note
from slipstream.cli.from_settings import Own, options_from_settings
from slipstream.cli.outputs import check_out_file, check_out_folder
from slipstream.cli.training_data import (
    Answers,
    AnswerTemperature,
    AnswerTokens,
    Data,
    Limit,
    load_target,
    read_dialogues,
)
from slipstream.cli.training_progress import Minutes, Nice, finish, left, lower_priority, training_bar
from slipstream.methods.draft_model.settings import DraftSettings
from slipstream.methods.eagle.settings import EagleSettings
from slipstream.methods.eagle3.settings import Eagle3Settings
from slipstream.methods.hydra.settings import HydraSettings
from slipstream.methods.medusa.settings import MedusaSettings
from slipstream.training.data.answer_settings import AnswerSettings

if TYPE_CHECKING:
    from slipstream.drafting.run_settings import RunSettings
    from slipstream.target.target import Target
    from slipstream.training.data.dialogues import Dialogue
    from slipstream.training.run import HeadRun

app = typer.Typer(name="train", no_args_is_help=True, help="Train draft heads, and rebuild the demo models.")

MODEL, HEADS, LEARNING, RUN = "The draft model", "The heads", "Learning", "The run"
PAPER, AHEAD = "As the paper", "Beyond the paper"
OF_A_RUN = ("precision", "cache_gib", "report_every", "held_out", "seed")
OF_LEARNING = ("epochs", "steps", "batch_size", "max_length", "learning_rate", "optimizer", "warmup_steps")
OF_HEADS = {"num_heads": "--heads", "num_layers": "--layers", "own_lm_heads": "--own-lm-heads/--shared-lm-head"}
NEEDLESS = ("tokens_per_step",)  # counts only where there is no batch size


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the training of every drafter is told beside its settings."""

    model: options.Model
    data: Data
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            callback=check_out_folder,
            metavar="DIR",
            help="What is trained, its log, and the state for resuming.",
        ),
    ]
    answers: Answers = "target"
    answer_tokens: AnswerTokens = 256
    answer_temperature: AnswerTemperature = 0.0
    limit: Limit = None
    minutes: Minutes = None
    nice: Nice = 0
    dtype: options.Dtype = None
    device: options.Device = None
    verbose: options.Verbose = False

    def begin(self, settings: RunSettings) -> tuple[Target, Any, list[Dialogue]]:
        """The target, its tokenizer, and the dialogues to train on."""
        lower_priority(self.nice)
        target, tokenizer = load_target(self.model, self.dtype, self.device)
        how = {"max_new_tokens": self.answer_tokens, "temperature": self.answer_temperature, "seed": settings.seed}
        dialogues = read_dialogues(
            target,
            tokenizer,
            self.data,
            self.out,
            answers=self.answers,
            how=how,
            limit=self.limit,
            max_length=settings.max_length,
        )
        return target, tokenizer, dialogues

    def finish(self, run: HeadRun, method: str, depth: int = 5) -> None:
        """Train, calibrate, and say how to use what came of it. depth: of the chains that calibration drafts."""
        finish(run, self.model, method, depth=depth, minutes=self.minutes)


@app.callback()
def train() -> None:
    """Train draft heads, and rebuild the demo models."""


@app.command()
@options_from_settings(
    panels={
        PAPER: (*OF_LEARNING, "noise", "feature_weight", "token_weight", "clip_value", "fc_bias"),
        AHEAD: ("steps_ahead", "ahead_decay", "loss_vocabulary"),
        RUN: ("initial_head", "tokens_per_step", *OF_A_RUN, "measured_depth"),
    },
    flags={"initial_head": "--from"},
)
def eagle(job: Job, settings: EagleSettings) -> None:
    """Train an EAGLE head for a target. The same command continues a run that was interrupted.

    On several GPUs: accelerate launch -m slipstream train eagle ...

    Example: slipstream train eagle -m Qwen/Qwen3-8B --data dialogues.jsonl --out heads/qwen3 --precision bf16
    """
    from slipstream.training.runs import EagleRun

    target, _, dialogues = job.begin(settings)
    job.finish(EagleRun(target, dialogues, job.out, settings), "eagle2")


@app.command()
@options_from_settings(
    panels={
        HEADS: ("layers", "draft_vocabulary", "fc_norm", "storage"),
        LEARNING: (*OF_LEARNING, "steps_ahead", "ahead_decay", "clip_norm"),
        RUN: ("initial_head", "tokens_per_step", *OF_A_RUN, "measured_depth"),
    },
    flags={"initial_head": "--from", "layers": "--layer"},
)
def eagle3(job: Job, settings: Eagle3Settings) -> None:
    """Train an EAGLE-3 head for a target. The same command continues a run that was interrupted.

    On several GPUs: accelerate launch -m slipstream train eagle3 ...

    Example: slipstream train eagle3 -m Qwen/Qwen3-8B --data dialogues.jsonl --out heads/qwen3 --precision bf16
    """
    from slipstream.training.runs import Eagle3Run

    target, _, dialogues = job.begin(settings)
    job.finish(Eagle3Run(target, dialogues, job.out, settings), "eagle3")


@app.command()
@options_from_settings(
    panels={
        HEADS: ("num_heads", "num_layers", "own_lm_heads"),
        LEARNING: ("labels", *OF_LEARNING, "head_decay"),
        RUN: OF_A_RUN,
    },
    flags=OF_HEADS,
    leave_out=NEEDLESS,
)
def medusa(job: Job, settings: MedusaSettings) -> None:
    """Train Medusa heads for a target. The same command continues a run that was interrupted.

    On several GPUs: accelerate launch -m slipstream train medusa ...

    Example: slipstream train medusa -m Qwen/Qwen3-8B --data dialogues.jsonl --out heads/qwen3-medusa --precision bf16
    """
    from slipstream.training.runs import MedusaRun

    target, _, dialogues = job.begin(settings)
    job.finish(MedusaRun(target, dialogues, job.out, settings), "medusa", depth=settings.num_heads)


@app.command()
@options_from_settings(
    panels={
        HEADS: ("num_heads", "num_layers", "prefix", "prefix_size", "own_lm_heads", "storage"),
        LEARNING: (*OF_LEARNING, "dropout", "weight_decay"),
        RUN: OF_A_RUN,
    },
    flags=OF_HEADS,
    leave_out=NEEDLESS,
)
def hydra(job: Job, settings: HydraSettings) -> None:
    """Train Hydra heads for a target. The same command continues a run that was interrupted.

    On several GPUs: accelerate launch -m slipstream train hydra ...

    Example: slipstream train hydra -m Qwen/Qwen3-8B --data dialogues.jsonl --out heads/qwen3-hydra --precision bf16
    """
    from slipstream.training.runs import HydraRun

    target, _, dialogues = job.begin(settings)
    job.finish(HydraRun(target, dialogues, job.out, settings), "hydra", depth=settings.num_heads)


@app.command()
@options_from_settings(
    panels={
        MODEL: ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "intermediate_size", "embeddings"),
        LEARNING: (*OF_LEARNING, "prompt_weight"),
        RUN: OF_A_RUN,
    },
    leave_out=NEEDLESS,
)
def draft(job: Job, settings: DraftSettings) -> None:
    """Train a small Llama on a target's own distributions. The same command continues a run that was interrupted.

    On several GPUs: accelerate launch -m slipstream train draft ...

    Example: slipstream train draft -m tiny --data dialogues.jsonl --out drafts/tiny --steps 3000
    """
    from slipstream.training.runs import DraftRun

    target, tokenizer, dialogues = job.begin(settings)
    job.finish(DraftRun(target, dialogues, job.out, settings, tokenizer), "draft-model")


def _part(text: str) -> tuple[int, int]:
    k, slash, n = text.partition("/")
    if not (slash and k.isdigit() and n.isdigit()):
        raise typer.BadParameter(f"{text!r} is not of the form K/N, such as 1/2")
    return int(k), int(n)


@app.command()
@options_from_settings(
    flags={"temperatures": "--temperature,-t", "max_new_tokens": "--max-new-tokens,-n"},
    own={
        "part": Own(
            Annotated[
                Any,
                typer.Option(
                    "--part", metavar="K/N", parser=_part, help="Of N processes sharing the work this is the K-th."
                ),
            ],
            "1/1",
        )
    },
)
def answers(
    model: options.Model,
    data: Data,
    out: Annotated[
        Path,
        typer.Option(
            "--out", callback=check_out_file, metavar="FILE", help="JSON lines; an interrupted run goes on in it."
        ),
    ],
    settings: AnswerSettings,
    nice: Nice = 0,
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
    from slipstream.training.data.answers import AnswerRun, plan

    check_threads(threads)
    lower_priority(nice)
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


app.command()(train_demo.target)
app.command()(train_demo.demo)
app.command()(train_demo.pack)
