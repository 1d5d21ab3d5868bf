"""`slipstream train eagle`: a draft head for methods eagle2 and eagle."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slipstream.cli import options
from slipstream.cli.answering import note

if TYPE_CHECKING:
    from slipstream.target import Target
    from slipstream.training.corpus import Example
    from slipstream.training.dialogues import Dialogue
    from slipstream.training.eagle import EagleReport
    from slipstream.training.eagle_settings import EagleSettings

PAPER, AHEAD, RUN = "As the paper", "Beyond the paper", "The run"


def eagle(
    model: options.Model,
    data: Annotated[
        list[Path],
        typer.Option(
            "--data", metavar="FILE", exists=True, dir_okay=False, help="JSON lines of messages; may be repeated."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The head, its log, and the state for resuming.")],
    answers: Annotated[
        str, typer.Option("--answers", metavar="KIND", help="target: answered anew by the target; data: as they are.")
    ] = "target",
    answer_tokens: Annotated[
        int, typer.Option("--answer-tokens", min=1, help="Tokens of an answer by the target, at most.")
    ] = 256,
    answer_temperature: Annotated[
        float, typer.Option("--answer-temperature", min=0.0, help="Of answers by the target; 0: greedy.")
    ] = 0.0,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Use only so many examples.")] = None,
    epochs: Annotated[float, typer.Option("--epochs", rich_help_panel=PAPER, help="Passes over the data.")] = 20.0,
    steps: Annotated[
        int | None, typer.Option("--steps", rich_help_panel=PAPER, help="Optimizer steps, instead of --epochs.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", rich_help_panel=PAPER, help="Dialogues a step on each device.")
    ] = 4,
    max_length: Annotated[
        int, typer.Option("--max-length", rich_help_panel=PAPER, help="Longer dialogues are cut to so many tokens.")
    ] = 2048,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", rich_help_panel=PAPER, help="Peak; small targets want about 1e-3.")
    ] = 3e-5,
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
    precision: Annotated[str, typer.Option("--precision", rich_help_panel=RUN, help="fp32 or bf16.")] = "fp32",
    cache_gib: Annotated[
        float, typer.Option("--cache-gib", rich_help_panel=RUN, help="Keep features on disk up to this size.")
    ] = 0.0,
    report_every: Annotated[
        int, typer.Option("--report-every", rich_help_panel=RUN, help="Steps between measurements and checkpoints.")
    ] = 100,
    seed: Annotated[int, typer.Option("--seed", rich_help_panel=RUN, help="Of weights, order and noise.")] = 0,
    dtype: options.Dtype = None,
    device: options.Device = None,
    verbose: options.Verbose = False,
) -> None:
    """Train an EAGLE head for a target. The same command continues a run that was interrupted.

    On several GPUs: accelerate launch -m slipstream train eagle ...

    Example: slipstream train eagle -m Qwen/Qwen3-8B --data sharegpt.jsonl --out heads/qwen3 --precision bf16
    """
    from slipstream.training.eagle import EagleRun
    from slipstream.training.eagle_settings import EagleSettings

    settings = EagleSettings(
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
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
    target, tokenizer = _load(model, dtype, device)
    how = {"max_new_tokens": answer_tokens, "temperature": answer_temperature, "seed": seed}
    dialogues = _dialogues(target, tokenizer, data, out, answers, how, limit, settings)
    run = EagleRun(target, dialogues, out, settings)
    main = run.accelerator.is_main_process
    if main:
        note(f"{len(dialogues)} dialogues of {sum(len(one.token_ids) for one in dialogues):,} tokens")
    if run.resume() and main:
        note(f"resumed at step {run.step}")
    with _progress(shown=main) as show:
        for report in run.steps():
            show(report)
    if main:
        print(f"{out}: use it with `slipstream generate -m {model} -d eagle2 --draft {out}`")


def _load(model: str, dtype: str | None, device: str | None) -> tuple[Target, Any]:
    """The target on this process's device. A half-precision target stays so; the head is trained in float32."""
    from accelerate import PartialState

    from slipstream.errors import InputError
    from slipstream.loading import load_model, load_tokenizer
    from slipstream.target import Target

    if device not in (None, "cpu", "cuda"):
        raise InputError(f"--device is {device!r}; use cpu or cuda, and choose among GPUs with CUDA_VISIBLE_DEVICES")
    place = PartialState(cpu=device == "cpu").device
    loaded = load_model(model, dtype=dtype, device="cuda" if device == "cuda" else place, attention=None)
    return Target(loaded), load_tokenizer(model)


def _dialogues(
    target: Target,
    tokenizer: Any,
    data: list[Path],
    out: Path,
    answers: str,
    how: dict[str, Any],
    limit: int | None,
    settings: EagleSettings,
) -> list[Dialogue]:
    from slipstream.errors import InputError, unknown_choice
    from slipstream.training.corpus import read_examples
    from slipstream.training.dialogues import encode, usable_dialogues

    if answers not in ("data", "target"):
        raise unknown_choice("answers", answers, ("data", "target"))
    examples = [example for path in data for example in read_examples(path)][:limit]
    if answers == "data":
        dialogues = [encode(example, tokenizer) for example in examples]
    else:
        dialogues = _answered(target, tokenizer, examples, out, how)
    usable = usable_dialogues(dialogues, settings.max_length)
    if not usable:
        names = ", ".join(str(path) for path in data)
        raise InputError(
            f"{names}: no answer within {settings.max_length} tokens; give dialogues of user and assistant"
        )
    return usable


def _answered(
    target: Target, tokenizer: Any, examples: list[Example], out: Path, how: dict[str, Any]
) -> list[Dialogue]:
    """The target's own answers; several processes share the work, and each keeps its part in a file of its own."""
    from accelerate import PartialState
    from accelerate.utils import gather_object

    from slipstream.training.dialogues import RegenerateSettings, regenerate

    state = PartialState(cpu=target.device.type == "cpu")
    part = f"{state.process_index + 1}of{state.num_processes}"
    key = hashlib.sha256(repr((target.hash, examples, how)).encode()).hexdigest()[:16]
    out.mkdir(parents=True, exist_ok=True)
    if state.is_main_process:
        note(f"the target answers {len(examples)} examples")
    with state.split_between_processes(examples) as own:
        store = out / f"answers-{key}-{part}.jsonl"
        dialogues: list[Dialogue] = gather_object(
            list(regenerate(target, tokenizer, own, store, RegenerateSettings(**how)))
        )
    return dialogues


@contextmanager
def _progress(*, shown: bool) -> Iterator[Callable[[EagleReport], None]]:
    """A bar on stderr with losses, accuracy and the time left; held-out accuracies stay as lines above it.

    shown: false in all processes but the main one, of whose batches the figures are.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False, quiet=not shown)
    columns = (BarColumn(), TextColumn("{task.percentage:.1f}%"), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=1.0)

        def show(report: EagleReport) -> None:
            accuracy = " ".join(f"{one:.1%}" for one in report.accuracy)
            losses = f"loss {report.loss:.4f} (features {report.feature_loss:.4f}, tokens {report.token_loss:.3f})"
            line = f"step {report.step} {losses} top-1 {accuracy} {report.left_s / 60:.0f} min left"
            bar.update(task, completed=report.step / report.num_steps, description=line)
            if report.held_out:
                depths = " ".join(f"{one:.1%}" for one in report.held_out)
                console.print(f"{line}; held-out top-1 by depth: {depths}", markup=False, soft_wrap=True)

        yield show
