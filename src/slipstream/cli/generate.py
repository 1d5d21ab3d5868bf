"""`slipstream generate`: one prompt, one answer."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import slipstream
from slipstream.cli import options
from slipstream.cli.answering import chosen, note, statistics_line, stdin_is_terminal, stream_answer
from slipstream.cli.conversation import read_messages, system_message
from slipstream.cli.from_settings import options_from_settings
from slipstream.cli.loading import first_alone_speaks, load, note_rounding
from slipstream.cli.options import given, parse_template
from slipstream.errors import InputError

if TYPE_CHECKING:
    from slipstream import Model
    from slipstream.engine.sequence import Step


@options_from_settings()
def generate(
    *,
    model: options.Model = "tiny",
    drafter: options.Method = "auto",
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            "-p",
            metavar="TEXT",
            rich_help_panel=options.ASKING,
            help="The prompt; '-' reads it from stdin.",
        ),
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(
            "--prompt-file",
            metavar="FILE",
            rich_help_panel=options.ASKING,
            help="Read the prompt from a UTF-8 text file. A line break at the end is no part of it, nor of stdin's.",
        ),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", rich_help_panel=options.ASKING, help="Continue the text itself: no chat template."),
    ] = False,
    system: options.System = None,
    messages: options.Messages = None,
    tools: Annotated[
        Path | None,
        typer.Option(
            "--tools",
            metavar="FILE",
            rich_help_panel=options.ASKING,
            help="Functions that the model may call: a JSON list of their schemas.",
        ),
    ] = None,
    template: options.Template = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    repetition_penalty: options.RepetitionPenalty = None,
    stop: options.Stop = None,
    verification: options.Verification = "coupled",
    drafting: options.DraftingOptions,
    option: options.Further = None,
    loading: options.LoadingOptions,
    tp_size: options.TpSize = None,
    as_json: options.Json = False,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Show the text while it is generated.")] = True,
    verbose: options.Verbose = False,
) -> None:
    """Generate one answer to one prompt.

    The text goes to stdout, a line of statistics to stderr. Without -p, --prompt-file and --messages the prompt is read
    from stdin.

    Example: slipstream generate -m tiny -p "Give three tips for staying healthy." -t 0.7 --seed 1
    """
    if raw and (system is not None or messages is not None or tools is not None or template):
        raise InputError("--raw has no chat template; leave out --system, --messages, --tools and --template")
    begun = system_message(system) if messages is None else read_messages(messages, system)
    is_asked = messages is None or prompt is not None or prompt_file is not None
    if tp_size is not None and is_asked and prompt_file is None and prompt in (None, "-"):
        raise InputError("stdin cannot be read by several processes; with --tp-size give -p TEXT or --prompt-file FILE")
    text = read_prompt(prompt, prompt_file) if is_asked else None
    settings = given(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        repetition_penalty=repetition_penalty,
        stop=stop or None,
        tools=None if tools is None else read_tools(tools),
        chat_template_kwargs=parse_template(template) or None,
    )
    with first_alone_speaks(tp_size):
        loaded = load(
            model, drafter, option, verification=verification, **asdict(drafting), **asdict(loading), tp_size=tp_size
        )
        asked: Any = begun if text is None else [*begun, {"role": "user", "content": text}] if begun else text
        ids_or_asked = loaded.tokenizer.encode(text) if raw else asked
        if as_json:
            output = loaded.generate(ids_or_asked, **settings)
            print(json.dumps(_record(loaded, model, asked, settings, output)))
            return
        note_rounding(loaded)
        if stream:
            output = stream_answer(loaded, ids_or_asked, settings, _print_step)
            print(flush=True)
        else:
            output = loaded.generate(ids_or_asked, **settings)
            print(output.text)
        note(statistics_line(output, chosen(loaded.method, drafter)))


def _print_step(step: Step) -> None:
    print(step.text, end="", flush=True)


def read_tools(path: Path) -> list[Any]:
    """The JSON list in a file. Raises InputError for anything else."""
    try:
        tools = json.loads(_read_file(path))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not valid JSON ({error}); give a list of function schemas") from error
    if not isinstance(tools, list):
        raise InputError(f"{path} holds no list; give a list of function schemas")
    return tools


def read_prompt(prompt: str | None, prompt_file: Path | None) -> str:
    """The prompt from wherever the user put it. Raises InputError if it is nowhere, twice, unreadable or empty."""
    if prompt is not None and prompt_file is not None:
        raise InputError("both --prompt and --prompt-file were given; give one of them")
    if prompt_file is not None:
        text = _without_last_break(_read_file(prompt_file))
    elif prompt is not None and prompt != "-":
        text = prompt
    elif prompt is None and stdin_is_terminal():
        raise InputError('there is no prompt; give one with -p "...", --prompt-file FILE or on stdin')
    else:
        text = _without_last_break(sys.stdin.read())
    if not text.strip():
        raise InputError("the prompt is empty; give at least one word")
    if any("\ud800" <= character <= "\udfff" for character in text):  # what Python makes of bytes it cannot decode
        raise InputError("the prompt is not UTF-8 text; convert it first")
    return text


def _without_last_break(text: str) -> str:
    """Editors and `echo` end a text with a line break."""
    return text.removesuffix("\n").removesuffix("\r")


def _read_file(path: Path) -> str:
    """Raises InputError for a file that cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read the prompt file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the prompt file {path} is not UTF-8 text (byte {error.start}); convert it first") from error


def _record(
    loaded: Model, model: str, prompt: Any, settings: dict[str, Any], output: slipstream.Output
) -> dict[str, Any]:
    return {
        "model": model,
        "method": loaded.method,
        "slipstream": slipstream.__version__,
        "prompt": prompt,
        "settings": settings,
        **output.to_dict(),
    }
