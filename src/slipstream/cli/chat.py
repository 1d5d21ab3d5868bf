"""`slipstream chat`: a conversation, answer by answer."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from slipstream.cli import options
from slipstream.cli.answering import note, statistics_line, stdin_is_terminal, stream_answer
from slipstream.cli.loading import load
from slipstream.cli.options import given
from slipstream.errors import InputError

if TYPE_CHECKING:
    from slipstream import Model, Output

COMMANDS = "/reset forgets the conversation, /stats shows figures, /quit leaves; Ctrl-C stops an answer"


def chat(
    model: options.Model = "tiny",
    drafter: options.Method = "auto",
    draft: options.Draft = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    repetition_penalty: options.RepetitionPenalty = None,
    verification: options.Verification = "coupled",
    skip_set: options.SkipSet = None,
    tree: options.Tree = None,
    width: options.Width = None,
    depth: options.Depth = None,
    total: options.Total = None,
    option: options.Further = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    attention: options.Attention = None,
    threads: options.Threads = None,
    verbose: options.Verbose = False,
) -> None:
    """Talk with a model.

    /reset forgets the conversation, /stats shows figures, /quit or Ctrl-D leaves. Ctrl-C stops the answer under way and
    drops it; the chat goes on.

    Example: slipstream chat -m tiny -t 0.7

    Lines may also come through a pipe: echo "Hello!" | slipstream chat
    """
    loaded = load(
        model,
        drafter,
        option,
        draft=draft,
        verification=verification,
        skip_set=skip_set,
        tree=tree,
        width=width,
        depth=depth,
        total=total,
        dtype=dtype,
        device=device,
        attention=attention,
        threads=threads,
    )
    settings = given(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        repetition_penalty=repetition_penalty,
    )
    note(f"{model}, {loaded.method}")
    note(COMMANDS)
    _converse(Conversation(loaded, settings))


@dataclass
class Conversation:
    """What has been said so far, and what it cost."""

    model: Model
    settings: dict[str, Any]
    messages: list[dict[str, str]] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)

    def answer(self, text: str) -> None:
        """Answer one message on stdout. A refused or interrupted message leaves the conversation consistent."""
        self.messages.append({"role": "user", "content": text})
        try:
            output = stream_answer(self.model, self.messages, self.settings)
        except (InputError, KeyboardInterrupt):
            self.messages.pop()
            raise
        self.messages.append({"role": "assistant", "content": output.text})
        self.outputs.append(output)

    def statistics(self) -> str:
        """Figures of the last answer, and sums over all."""
        if not self.outputs:
            return "no answers yet"
        tokens = sum(output.stats.num_tokens for output in self.outputs)
        cycles = sum(output.stats.num_cycles for output in self.outputs)
        return (
            f"last: {statistics_line(self.outputs[-1], self.model.method)}\n"
            f"in all: {tokens} tokens in {cycles} target passes, tau {tokens / cycles:.2f}"
        )


def _converse(conversation: Conversation) -> None:
    """Read lines until the end of the input or /quit."""
    while (line := _read_line()) is not None:
        text = line.strip()
        if text == "/quit":
            return
        if text == "/reset":
            conversation.messages.clear()
            note("conversation forgotten")
        elif text == "/stats":
            note(conversation.statistics())
        elif text.startswith("/"):
            note(f"unknown command {text.split()[0]}; {COMMANDS}")
        elif text:
            _answer(conversation, text)


def _answer(conversation: Conversation, text: str) -> None:
    try:
        conversation.answer(text)
    except KeyboardInterrupt:
        print()
        note("interrupted; your message and this answer were dropped from the conversation")
    except InputError as error:
        note(f"error: {error} (/reset starts over)")


def _read_line() -> str | None:
    """The next line of the user, None at the end. Ctrl-C at the prompt empties the line, as in a shell."""
    if not stdin_is_terminal():
        return sys.stdin.readline() or None
    with suppress(ImportError):  # where there is none, the line just cannot be edited
        import readline  # noqa: F401  (its import gives `input` editing and history)
    while True:
        try:
            return input("\n> ")
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()
            note("Ctrl-D or /quit leaves")
