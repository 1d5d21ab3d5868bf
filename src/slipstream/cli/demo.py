"""`slipstream demo`: methods on the shipped prompts, each answer compared with plain decoding."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

import slipstream
from slipstream.bench.comparison import PLAIN, Answer, Comparison
from slipstream.cli import options
from slipstream.cli.answering import note
from slipstream.cli.demo_report import DemoRun, show
from slipstream.cli.loading import load
from slipstream.errors import InputError, LosslessnessError
from slipstream.files.packaged import TINY
from slipstream.prompts import Prompt, load_prompts

if TYPE_CHECKING:
    from slipstream import Model


_BRIEF_PROMPTS, _BRIEF_TOKENS = (25, 2, 12), 40
_BRIEF_METHODS = (PLAIN, "auto", "eagle2", "prompt-lookup")
"""For a model that is not tiny: a conversation, a function and a summary, by methods that size their drafts by cost."""


def demo(
    model: options.Model = TINY,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods", metavar="A,B", help="Methods to compare with plain; default: all; larger models: a few."
        ),
    ] = None,
    num_prompts: Annotated[
        int | None,
        typer.Option("--prompts", metavar="N", help="The first N prompts; default: all; larger models: 3."),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            "-n",
            rich_help_panel=options.SAMPLING,
            help="Tokens at most, per answer; default: 64; larger models: 40.",
        ),
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option("--temperature", "-t", help="May be repeated; default: 0 (greedy) and 1."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the sampled answers.")] = 1,
    time_limit: Annotated[
        float, typer.Option("--time-limit", metavar="SECONDS", help="Start no prompt that would end after this.")
    ] = 165.0,
    dtype: options.Dtype = None,
    device: options.Device = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Run methods on the shipped prompts, beside plain decoding: on the tiny model every one that has all it needs.

    All use one model, by default the tiny one that ships too, greedily and at temperature 1 with a fixed seed, side by
    side in one run. Token ids must equal those of plain decoding; where they differ, both are generated again in
    float64: equal there, the difference was rounding; otherwise it is a fault and the exit code is 1.

    Example: slipstream demo --methods layer-skip --prompts 6
    """
    began = time.perf_counter()
    brief = model != TINY
    prompts = _brief_prompts() if num_prompts is None and brief else _chosen_prompts(num_prompts)
    names = _chosen_methods(methods, model)
    note(f"loading {model} for {', '.join(names)}")
    comparison = Comparison(
        models=_Loader(model, dtype, device, threads).load_all(names),
        exact=_Loader(model, "float64", device, threads).load,
        temperatures=temperature or (0.0, 1.0),
        seed=seed,
        max_new_tokens=(_BRIEF_TOKENS if brief else 64) if max_new_tokens is None else max_new_tokens,
    )
    answers = list(_run(comparison, prompts, began + time_limit))
    run = DemoRun(model, comparison, answers, len(prompts), time.perf_counter() - began)
    if as_json:
        print(json.dumps(run.to_dict()))
    else:
        show(run)
    _raise_on_fault(answers)


# Choosing and loading


def _chosen_prompts(number: int | None) -> list[Prompt]:
    prompts = load_prompts()
    if number is not None and not 1 <= number <= len(prompts):
        raise InputError(f"--prompts is {number}; it must lie from 1 to {len(prompts)}")
    return prompts[:number]


def _brief_prompts() -> list[Prompt]:
    prompts = {prompt.id: prompt for prompt in load_prompts()}
    return [prompts[number] for number in _BRIEF_PROMPTS]


def _chosen_methods(text: str | None, model: str) -> list[str]:
    """Plain first, then as given, or those for which the package ships what they need on the model."""
    from slipstream.methods.registry import METHODS, find_method

    if text is None:
        wanted = METHODS if model == TINY else _BRIEF_METHODS
        names = [name for name in wanted if METHODS[name].runs_on(model)]
    else:
        names = [find_method(name.strip()).name for name in text.split(",") if name.strip()]
    return list(dict.fromkeys([PLAIN, *names]))


class _Loader:
    """Loads the target once and gives every method its own model over it."""

    def __init__(self, model: str, dtype: str | None, device: str | None, threads: int | None) -> None:
        self.model = model
        self.settings: dict[str, Any] = {"dtype": dtype, "device": device, "threads": threads}
        self.models: dict[str, Model] = {}

    def load(self, method: str) -> Model:
        if PLAIN not in self.models:
            self.models[PLAIN] = load(self.model, PLAIN, **self.settings, keep=0)
        if method not in self.models:
            plain = self.models[PLAIN]
            self.models[method] = slipstream.load(plain.target.model, method, tokenizer=plain.tokenizer, keep=0)
        return self.models[method]

    def load_all(self, methods: Sequence[str]) -> dict[str, Model]:
        return {method: self.load(method) for method in methods}


# Running


def _run(comparison: Comparison, prompts: Sequence[Prompt], deadline: float) -> Iterator[Answer]:
    """All answers, with a progress bar on stderr. No prompt is started that would probably end after the deadline."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<24}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    slowest_s = 0.0
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("warming up", total=sum(map(comparison.num_answers, prompts)))
        comparison.warm_up(prompts[0])
        for number, prompt in enumerate(prompts):
            began = time.perf_counter()
            if number > 0 and began + slowest_s > deadline:
                return
            progress.update(task, description=f"prompt {number + 1}: {prompt.kind}")
            for answer in comparison.answers(prompt, first=number):
                progress.advance(task)
                yield answer
            slowest_s = max(slowest_s, time.perf_counter() - began)
            if not console.is_terminal and (number + 1) % 6 == 0:
                note(f"{number + 1} of {len(prompts)} prompts done")
        progress.update(task, description="done")


def _raise_on_fault(answers: Sequence[Answer]) -> None:
    faults = [answer for answer in answers if answer.verdict == "fault"]
    if faults:
        first = faults[0]
        raise LosslessnessError(
            f"{len(faults)} of {len(answers)} answers differ from plain decoding in float64 too; the first is "
            f"{first.method} at T={first.temperature:g} on prompt {first.prompt.id} ({first.prompt.kind}), turn "
            f"{first.turn + 1}, from generated token {first.first_difference} on. This is a fault: please report it."
        )
