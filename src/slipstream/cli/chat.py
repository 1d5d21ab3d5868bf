"""`slipstream chat`: a conversation, answer by answer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from slipstream.cli import options
from slipstream.cli.answering import chosen, note, statistics_line, stdin_is_terminal
from slipstream.cli.conversation import Conversation, Show, read_messages, system_message, write_messages
from slipstream.cli.from_settings import options_from_settings
from slipstream.cli.loading import load, note_rounding
from slipstream.cli.marking import DraftMarks, can_mark
from slipstream.cli.options import given, parse_further, parse_template
from slipstream.cli.wrapping import Screen
from slipstream.errors import InputError

if TYPE_CHECKING:
    from slipstream.engine.sequence import Step

QUOTES = '"""'
"""Opens and ends a message of several lines."""


@options_from_settings()
def chat(
    *,
    model: options.Model = "tiny",
    drafter: options.Method = "auto",
    system: options.System = None,
    messages: options.Messages = None,
    template: options.Template = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    repetition_penalty: options.RepetitionPenalty = None,
    verification: options.Verification = "coupled",
    drafting: options.DraftingOptions,
    option: options.Further = None,
    loading: options.LoadingOptions,
    colour: options.Colour = None,
    verbose: options.Verbose = False,
) -> None:
    """Talk with a model, and see on a terminal which of its words were drafted.

    /help lists what can be typed beside messages. Ctrl-C stops an answer, of which /continue then goes on with what is
    there; Ctrl-D leaves. Pasted lines are one message, and so is what stands between lines of three quotes.

    Example: slipstream chat -m tiny -t 0.7 --system "Answer in one sentence."

    Lines may also come through a pipe: echo "Hello!" | slipstream chat
    """
    settings = given(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        repetition_penalty=repetition_penalty,
        chat_template_kwargs=parse_template(template) or None,
    )
    begun = system_message(system) if messages is None else read_messages(messages, system)
    loaded = load(
        model,
        drafter,
        option,
        verification=verification,
        **asdict(drafting),
        **asdict(loading),
    )
    method = chosen(loaded.method, drafter)
    note(f"{model}, {method}")
    note_rounding(loaded)
    note("/help lists commands; Ctrl-C stops an answer, Ctrl-D leaves")
    marks = can_mark() if colour is None else colour
    Chat(Conversation(loaded, method, settings, begun), given(**asdict(drafting), **parse_further(option)), marks).run()


class Command(NamedTuple):
    """What can be typed beside messages."""

    usage: str
    does: str
    run: Callable[[Chat, str], None]


class Chat:
    """A person's side of a conversation."""

    def __init__(self, conversation: Conversation, drafting: dict[str, Any], marks: bool) -> None:
        """drafting: options for the methods that read them. marks: whether drafted text is marked."""
        self.conversation, self.drafting, self.marks = conversation, drafting, marks
        self.is_over = False

    def run(self) -> None:
        """Read messages and commands until the end of the input or /quit."""
        if self.marks:
            note(_LEGEND)
        while not self.is_over and (text := read_message()) is not None:
            if text.startswith("/"):
                self._obey(text)
            elif text:
                self._show(partial(self.conversation.answer, text))

    def _obey(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        command = COMMANDS.get(name.lower())
        if command is None:
            note(f"unknown command {name}; /help lists them")
            return
        try:
            command.run(self, rest.strip())
        except InputError as error:
            note(f"error: {error}")
        except KeyboardInterrupt:
            note(f"interrupted; {name} changed nothing")

    def _show(self, answer: Callable[[Show], Any]) -> None:
        """Show an answer as it is said."""
        screen, parts, before = Screen(), self._parts(), list(self.conversation.messages)

        def show(step: Step) -> None:
            for text, drafted in parts(step):
                screen.write(text, drafted)

        try:
            output = answer(show)
        except KeyboardInterrupt:
            screen.end()
            note(_INTERRUPTED if self.conversation.messages != before else _NOTHING_SAID)
        except InputError as error:
            note(f"error: {error} (/reset starts over)")
        else:
            screen.end()
            if not output.text:
                note("nothing was said: the model ends the answer here")
            if output.finish_reason == "length":
                note("cut off at the limit of --max-new-tokens; /continue goes on")

    def _parts(self) -> Callable[[Step], list[tuple[str, bool]]]:
        """What shows a step's text in parts, and whether to mark each."""
        text = self.conversation.model.answer_text(None) if self.marks else None
        return (lambda step: [(step.text, False)]) if text is None else DraftMarks(text).parts

    # -- commands ----------------------------------------------------------------------------------------------------

    def go_on(self, rest: str) -> None:
        """/continue."""
        if not self.conversation.messages or self.conversation.messages[-1]["role"] == "system":
            note("there is nothing to continue yet")
            return
        self._show(self.conversation.go_on)

    def reset(self, rest: str) -> None:
        """/reset."""
        self.conversation.forget()
        note("conversation forgotten")

    def show_statistics(self, rest: str) -> None:
        """/stats: figures of the last answer, and sums over all."""
        outputs = self.conversation.outputs
        if not outputs:
            note("no answers yet")
            return
        last_method, last = outputs[-1]
        note(f"last: {statistics_line(last, last_method)}")
        methods = dict.fromkeys(method for method, _ in outputs)
        for method in methods:
            all_of = [output.stats for its_method, output in outputs if its_method == method]
            tokens, cycles = sum(one.num_tokens for one in all_of), sum(one.num_cycles for one in all_of)
            what = f"{method}, in all" if len(methods) > 1 else "in all"
            note(f"{what}: {tokens} tokens in {cycles} target passes, tau {tokens / cycles:.2f}")

    def change_method(self, rest: str) -> None:
        """/method NAME: over the same target, with those of the command's options that it reads."""
        from slipstream.methods.registry import METHODS, find_method

        if not rest:
            note(f"{self.conversation.method}; /method NAME takes another: {', '.join(METHODS)}")
            return
        reads = find_method(rest).options
        drafting = {name: value for name, value in self.drafting.items() if name in reads}
        self.conversation.model = self.conversation.model.with_method(rest, **drafting)
        self.conversation.method = chosen(self.conversation.model.method, rest)
        note(f"{self.conversation.method} from the next answer on")

    def change_seed(self, rest: str) -> None:
        """/seed N, or /seed for a new one each time."""
        from slipstream.core.sampling import SamplingSettings

        if not rest:
            self.conversation.settings.pop("seed", None)
            note("every sampled answer draws a seed of its own, which /stats shows")
            return
        seed: Any = int(rest) if rest.isdecimal() else rest
        self.conversation.settings["seed"] = SamplingSettings(seed=seed).seed
        note(f"seed {seed} from the next answer on, where answers are sampled (--temperature)")

    def change_colour(self, rest: str) -> None:
        """/colour."""
        self.marks = not self.marks
        note(_LEGEND if self.marks else "drafted text is no longer marked; /colour marks it again")

    def save(self, rest: str) -> None:
        """/save FILE."""
        write_messages(self.conversation.messages, _named(rest, "/save"))
        note(f"saved {len(self.conversation.messages)} messages in {rest}; /load {rest} goes on with them")

    def load(self, rest: str) -> None:
        """/load FILE."""
        self.conversation.messages = read_messages(_named(rest, "/load"))
        note(f"{len(self.conversation.messages)} messages; what was said before them is forgotten")

    def help(self, rest: str) -> None:
        """/help."""
        for command in dict.fromkeys(COMMANDS.values()):
            note(f"{command.usage:<12} {command.does}")
        note(f"{QUOTES:<12} begins and ends a message of several lines; pasted lines are one message anyway")
        note("Ctrl-C       stops an answer; what was said of it stays")

    def quit(self, rest: str) -> None:
        """/quit."""
        self.is_over = True


_QUIT = Command("/quit", "leaves, as Ctrl-D does", Chat.quit)
COMMANDS = {
    "/help": Command("/help", "shows this", Chat.help),
    "/continue": Command("/continue", "goes on with the last answer", Chat.go_on),
    "/reset": Command("/reset", "forgets the conversation, but for the system message", Chat.reset),
    "/method": Command("/method NAME", "drafts in another way; the conversation goes on", Chat.change_method),
    "/seed": Command("/seed N", "samples with this seed; without N with a new one for every answer", Chat.change_seed),
    "/colour": Command("/colour", "marks drafted text, or no longer", Chat.change_colour),
    "/stats": Command("/stats", "shows figures of the last answer and of all", Chat.show_statistics),
    "/save": Command("/save FILE", "keeps the conversation, as JSON messages", Chat.save),
    "/load": Command("/load FILE", "goes on with one that was kept", Chat.load),
    "/quit": _QUIT,
    "/exit": _QUIT,
}


_INTERRUPTED = "interrupted; what was said stays, and /continue goes on with it"
_LEGEND = "green and underlined: drafted, and what the model says too; /colour takes the marks away"
_NOTHING_SAID = "interrupted before anything was said; the conversation is as it was before"


def _named(text: str, command: str) -> Path:
    if not text:
        raise InputError(f"name a file: {command} FILE")
    return Path(text).expanduser()


def read_message() -> str | None:
    """The next message of the user without white space around it, None at the end of the input."""
    line = _read_line("\n> ")
    if line is None or not line.strip().startswith(QUOTES):
        return None if line is None else line.strip()
    lines = [line.strip().removeprefix(QUOTES)]
    while not lines[-1].rstrip().endswith(QUOTES) and (line := _read_line("... ")) is not None:
        lines.append(line.rstrip("\n"))
    return "\n".join(lines).rstrip().removesuffix(QUOTES).strip()


def _read_line(prompt: str) -> str | None:
    """The next line of the user, or the lines pasted at once; None at the end.

    Ctrl-C at the prompt empties the line, as in a shell.
    """
    if not stdin_is_terminal():
        return sys.stdin.readline() or None
    with suppress(ImportError):  # where there is none, the line just cannot be edited
        import readline  # its import gives `input` editing and history

        readline.parse_and_bind("set enable-bracketed-paste on")  # pasted line breaks do not end the line
    while True:
        try:
            return input(prompt)
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()
            note("Ctrl-D or /quit leaves")
