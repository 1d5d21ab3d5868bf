"""`slipstream demo`: every method on the shipped prompts, each answer compared with plain decoding."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

import slipstream
from slipstream.bench.comparison import PLAIN, Answer, Comparison, Totals, summarise
from slipstream.bench.prompts import Prompt, load_prompts
from slipstream.cli import options
from slipstream.cli.answering import note
from slipstream.cli.loading import load
from slipstream.errors import InputError, LosslessnessError, unknown_choice

if TYPE_CHECKING:
    from rich.table import Table

    from slipstream import Model

SAMPLES = ("instructions", "questions")
"""Kinds of which one answer is shown in full."""

LEGEND = (
    "tau: tokens per target pass. accept rate: drafted tokens that were kept. x plain: speed against\n"
    "plain decoding in this run. identical to plain: answers with the same token ids; rounding: those\n"
    "that differ in this dtype, but not in float64."
)


def demo(
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods", metavar="A,B", help="Methods to compare with plain; default: all that are available."
        ),
    ] = None,
    num_prompts: Annotated[
        int | None, typer.Option("--prompts", metavar="N", help="The first N prompts; default: all.")
    ] = None,
    max_new_tokens: options.MaxNewTokens = 64,
    temperature: Annotated[
        list[float] | None,
        typer.Option("--temperature", "-t", help="May be repeated; default: 0 (greedy) and 1."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the sampled answers.")] = 1,
    time_limit: Annotated[
        float, typer.Option("--time-limit", metavar="SECONDS", help="Start no further prompt after this long.")
    ] = 150.0,
    dtype: options.Dtype = None,
    device: options.Device = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Run every method on the shipped prompts and compare it with plain decoding.

    All use one small chat model that ships too, greedily and at temperature 1 with a fixed seed, side by side in one
    run. Token ids must equal those of plain decoding; where they differ, both are generated again in float64: equal
    there, the difference was rounding; otherwise it is a fault and the exit code is 1.

    Example: slipstream demo --methods layer-skip --prompts 6
    """
    began = time.perf_counter()
    prompts = _chosen_prompts(num_prompts)
    comparison = Comparison(
        models=_Loader(dtype, device).load_all(_chosen_methods(methods)),
        exact=_Loader("float64", device).load,
        temperatures=temperature or (0.0, 1.0),
        seed=seed,
        max_new_tokens=max_new_tokens or 64,
    )
    answers = list(_run(comparison, prompts, deadline=began + time_limit))
    wall_s = time.perf_counter() - began
    num_done = len({answer.prompt.id for answer in answers})
    if as_json:
        print(json.dumps(_record(comparison, answers, num_done, wall_s)))
    else:
        _show(comparison, answers, num_done, len(prompts), wall_s)
    _raise_on_fault(answers)


# Choosing and loading


def _chosen_prompts(number: int | None) -> list[Prompt]:
    prompts = load_prompts()
    if number is not None and not 1 <= number <= len(prompts):
        raise InputError(f"--prompts is {number}; it must lie from 1 to {len(prompts)}")
    return prompts[:number]


def _chosen_methods(text: str | None) -> list[str]:
    """Plain first, then the rest in the order of the registry or as given."""
    from slipstream.drafters import METHODS

    names = list(METHODS) if text is None else [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in METHODS:
            raise unknown_choice("method", name, METHODS)
    return list(dict.fromkeys([PLAIN, *names]))


class _Loader:
    """Loads the demo target once and gives every method its own model over it."""

    def __init__(self, dtype: str | None, device: str | None) -> None:
        self.settings = {"dtype": dtype, "device": device}
        self.models: dict[str, Model] = {}

    def load(self, method: str) -> Model:
        if PLAIN not in self.models:
            self.models[PLAIN] = load("demo", PLAIN, **self.settings)
        if method not in self.models:
            plain = self.models[PLAIN]
            self.models[method] = slipstream.load(plain.target.model, method, tokenizer=plain.tokenizer)
        return self.models[method]

    def load_all(self, methods: Sequence[str]) -> dict[str, Model]:
        return {method: self.load(method) for method in methods}


# Running


def _run(comparison: Comparison, prompts: Sequence[Prompt], deadline: float) -> Iterator[Answer]:
    """All answers, with a progress bar on stderr. After the deadline no further prompt is started."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("prompts"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("warming up", total=len(prompts))
        comparison.warm_up(prompts[0])
        for number, prompt in enumerate(prompts):
            if number > 0 and time.perf_counter() > deadline:
                return
            progress.update(task, description=f"{prompt.kind:<12}")
            yield from comparison.answers(prompt, first=number)
            progress.advance(task)
            if not console.is_terminal and (number + 1) % 6 == 0:
                note(f"{number + 1} of {len(prompts)} prompts done")


def _raise_on_fault(answers: Sequence[Answer]) -> None:
    faults = [answer for answer in answers if answer.verdict == "fault"]
    if faults:
        first = faults[0]
        raise LosslessnessError(
            f"{len(faults)} answers differ from plain decoding in float64 too; the first is {first.method} at "
            f"T={first.temperature:g} on prompt {first.prompt.id} ({first.prompt.kind}), turn {first.turn + 1}, from "
            f"generated token {first.first_difference} on. This is a fault in slipstream: please report it."
        )


# Showing


def _show(comparison: Comparison, answers: Sequence[Answer], num_done: int, num_asked: int, wall_s: float) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for sample in _samples(answers):
        console.print(f"[bold]{sample.prompt.kind}[/bold]  plain and all others at T=0", style="cyan")
        console.print(sample.prompt.turns[0].strip(), style="dim", markup=False)
        console.print(sample.output.text.strip() + "\n", markup=False)
    console.print(_table(summarise(answers)))
    console.print(LEGEND, style="dim")
    target = comparison.models[PLAIN].target
    stopped = "" if num_done == num_asked else f" of {num_asked} (stopped at the time limit)"
    console.print(
        f"{num_done} prompts{stopped}, up to {comparison.max_new_tokens} tokens each, on {target.device} in "
        f"{str(target.dtype).removeprefix('torch.')}: {wall_s:.0f} s in all, loading included."
    )


def _samples(answers: Sequence[Answer]) -> list[Answer]:
    """The first plain answer of each kind in SAMPLES."""
    found: dict[str, Answer] = {}
    for answer in answers:
        if answer.method == PLAIN:
            found.setdefault(answer.prompt.kind, answer)
    return [found[kind] for kind in SAMPLES if kind in found]


def _table(rows: Sequence[Totals]) -> Table:
    from rich.table import Table

    table = Table(title="Every method against plain decoding of the same target", title_justify="left")
    table.add_column("method", no_wrap=True)
    for heading in ("T", "tau", "accept\nrate", "target passes\nsaved", "tokens/s", "x plain"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("identical\nto plain")
    plain = {row.temperature: row for row in rows if row.method == PLAIN}
    for index, row in enumerate(rows):
        last_of_temperature = index + 1 == len(rows) or rows[index + 1].temperature != row.temperature
        table.add_row(*_cells(row, plain[row.temperature]), end_section=last_of_temperature)
    return table


def _cells(row: Totals, plain: Totals) -> list[str]:
    stats = row.stats
    return [
        row.method,
        f"{row.temperature:g}",
        f"{stats.tau:.2f}",
        f"{stats.acceptance_rate:.0%}" if stats.num_drafted else "-",
        f"{stats.passes_saved:.0%}",
        f"{stats.tokens_per_second:.0f}",
        f"{stats.tokens_per_second / plain.stats.tokens_per_second:.2f}",
        "reference" if row.method == PLAIN else _verdicts(row),
    ]


def _verdicts(row: Totals) -> str:
    verdicts = row.verdicts
    text = f"{verdicts['identical']} of {sum(verdicts.values())}"
    if verdicts["rounding"]:
        text += f", {verdicts['rounding']} rounding"
    if verdicts["fault"]:
        text += f", [bold red]{verdicts['fault']} FAULT[/bold red]"
    return text


def _record(comparison: Comparison, answers: Sequence[Answer], num_done: int, wall_s: float) -> dict[str, Any]:
    target = comparison.models[PLAIN].target
    return {
        "model": "demo",
        "slipstream": slipstream.__version__,
        "device": str(target.device),
        "dtype": str(target.dtype).removeprefix("torch."),
        "seed": comparison.seed,
        "max_new_tokens": comparison.max_new_tokens,
        "num_prompts": num_done,
        "wall_s": wall_s,
        "methods": [row.to_dict() for row in summarise(answers)],
        "answers": [_answer_record(answer) for answer in answers],
    }


def _answer_record(answer: Answer) -> dict[str, Any]:
    return {
        "prompt_id": answer.prompt.id,
        "kind": answer.prompt.kind,
        "turn": answer.turn,
        "method": answer.method,
        "temperature": answer.temperature,
        "verdict": answer.verdict,
        "first_difference": answer.first_difference,
        **answer.output.to_dict(),
    }
