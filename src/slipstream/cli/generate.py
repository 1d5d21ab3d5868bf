"""`slipstream generate`: one prompt, one answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import slipstream
from slipstream.cli import options
from slipstream.cli.answering import note, statistics_line, stdin_is_terminal, stream_answer
from slipstream.cli.loading import load
from slipstream.cli.options import given
from slipstream.errors import InputError

if TYPE_CHECKING:
    from slipstream import Model


def generate(
    model: options.Model = "tiny",
    drafter: options.Method = "auto",
    draft: options.Draft = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="The prompt; '-' reads it from stdin.")
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompt-file", metavar="FILE", help="Read the prompt from a UTF-8 text file.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text itself: no chat template.")] = False,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    repetition_penalty: options.RepetitionPenalty = None,
    stop: options.Stop = None,
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
    as_json: options.Json = False,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Show the text while it is generated.")] = True,
    verbose: options.Verbose = False,
) -> None:
    """Generate one answer to one prompt.

    The text goes to stdout, a line of statistics to stderr. Without -p and --prompt-file the prompt is read from stdin.

    Example: slipstream generate -m tiny -p "Give three tips for staying healthy." -t 0.7 --seed 1
    """
    text = read_prompt(prompt, prompt_file)
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
        stop=stop or None,
    )
    tokens_or_text = loaded.tokenizer.encode(text) if raw else text
    if as_json:
        print(json.dumps(_record(loaded, model, text, settings, loaded.generate(tokens_or_text, **settings))))
        return
    if stream:
        output = stream_answer(loaded, tokens_or_text, settings)
    else:
        output = loaded.generate(tokens_or_text, **settings)
        print(output.text)
    note(statistics_line(output, loaded.method))


def read_prompt(prompt: str | None, prompt_file: Path | None) -> str:
    """The prompt from wherever the user put it. Raises InputError if it is nowhere, twice, unreadable or empty."""
    if prompt is not None and prompt_file is not None:
        raise InputError("both --prompt and --prompt-file were given; give one of them")
    if prompt_file is not None:
        text = _read_file(prompt_file)
    elif prompt is not None and prompt != "-":
        text = prompt
    elif prompt is None and stdin_is_terminal():
        raise InputError('there is no prompt; give one with -p "...", --prompt-file FILE or on stdin')
    else:
        text = sys.stdin.read()
    if not text.strip():
        raise InputError("the prompt is empty; give at least one word")
    if any("\ud800" <= character <= "\udfff" for character in text):  # what Python makes of bytes it cannot decode
        raise InputError("the prompt is not UTF-8 text; convert it first")
    return text


def _read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read the prompt file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the prompt file {path} is not UTF-8 text (byte {error.start}); convert it first") from error


def _record(
    loaded: Model, model: str, prompt: str, settings: dict[str, Any], output: slipstream.Output
) -> dict[str, Any]:
    return {
        "model": model,
        "method": loaded.method,
        "slipstream": slipstream.__version__,
        "prompt": prompt,
        "settings": settings,
        **output.to_dict(),
    }
