"""A stand-in for `slipstream.load`, so that the commands are tested without weights, in milliseconds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import slipstream
from slipstream.cli.app import app
from slipstream.engine.sequence import Step
from slipstream.errors import InputError, unknown_choice
from slipstream.methods.registry import METHODS
from slipstream.output import Output, Stats

WORDS = ("Rain ", "falls ", "on ", "the ", "quiet ", "sea.")
TOKENS_A_CYCLE = 3


@dataclass
class FakeModel:
    """Says `WORDS`, three tokens a cycle (plain: one), and keeps what it was asked."""

    loader: FakeLoader
    method: str
    settings: dict[str, Any]
    prompts: list[Any] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokenizer = SimpleNamespace(encode=lambda text: [ord(character) for character in text])
        self.dtype = self.settings.get("dtype") or "float32"
        device = torch.device(self.settings.get("device") or "cpu")
        self.target = SimpleNamespace(model=self, device=device, dtype=f"torch.{self.dtype}")

    def num_parameters(self) -> int:
        return self.loader.num_parameters

    def stream(self, prompt: Any, **settings: Any) -> Generator[Step, None, Output]:
        self.prompts.append(copy.deepcopy(prompt))  # the caller's list of messages grows
        self.requests.append(settings)
        self.loader.calls.append((self.method, self.dtype))
        if settings.get("temperature", 0) < 0:
            raise InputError(f"temperature is {settings['temperature']}; it must be 0 or more")
        if settings.get("max_new_tokens", 1) < 1:
            raise InputError(f"max_new_tokens is {settings['max_new_tokens']}; it must be at least 1")
        words = [f"{self.method}! ", *WORDS[1:]] if self.loader.alters(self, prompt) else list(WORDS)
        count = 1 if self.method == "plain" else TOKENS_A_CYCLE
        steps = []
        for start in range(0, len(words), count):
            if self.loader.interrupt and start >= self.loader.tokens_before_interrupt:
                self.loader.interrupt = False
                raise KeyboardInterrupt
            piece = words[start : start + count]
            last = start + count >= len(words)
            step = Step(
                token_ids=tuple(len(word) + ord(word[0]) for word in piece),
                num_drafted=0 if count == 1 else 4,
                num_accepted=count - 1,
                verify_s=0.01,
                text="".join(piece),
                finish_reason="eos" if last else None,
            )
            steps.append(step)
            yield step
        seed = settings.get("seed")
        return Output(
            text="".join(words),
            token_ids=[token for step in steps for token in step.token_ids],
            prompt_ids=[1, 2],
            finish_reason="eos",
            seed=(7 if seed is None else seed) if settings.get("temperature") else None,
            stats=Stats.of(steps, total_s=0.01 * len(steps)),
        )

    def generate(self, prompt: Any, **settings: Any) -> Output:
        steps = self.stream(prompt, **settings)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value


@dataclass
class FakeLoader:
    """Takes the place of `slipstream.load` and remembers the models it made."""

    models: list[FakeModel] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)
    """(method, dtype) of every generation, in order."""
    alters: Callable[[FakeModel, Any], bool] = lambda model, prompt: False
    """Whether a model's answer to a prompt begins with another word."""
    num_parameters: int = 10_000_000
    interrupt: bool = False
    """Press Ctrl-C in the next generation, ..."""
    tokens_before_interrupt: int = 0
    """... after so many tokens."""

    def __call__(self, model: Any, drafter: str, **settings: Any) -> FakeModel:
        if drafter not in METHODS:
            raise unknown_choice("method", drafter, METHODS)
        if isinstance(model, FakeModel):
            settings = {**model.settings, **settings}
        self.models.append(FakeModel(self, drafter, {**settings, "model": model}))
        return self.models[-1]


@pytest.fixture(autouse=True)
def same_threads() -> Generator[None, None, None]:
    """Commands settle the number of threads of the process they run in."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> FakeLoader:
    loader = FakeLoader()
    monkeypatch.setattr(slipstream, "load", loader)
    return loader


@pytest.fixture
def cli() -> Callable[..., Result]:
    """Run the command line in this process; the result has exit_code, stdout and stderr."""

    def invoke(*arguments: object, stdin: str = "") -> Result:
        words = [str(argument) for argument in arguments]
        return CliRunner().invoke(app, words, input=stdin, env={"COLUMNS": "120", "NO_COLOR": "1"})

    return invoke
