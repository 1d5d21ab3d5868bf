"""`slipstream heads`: what is done with trained heads, beside drafting with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli import options
from slipstream.cli.training_data import Data, load_target

app = typer.Typer(name="heads", no_args_is_help=True, help="Trained heads: what can be added to one.")


@app.callback()
def heads() -> None:
    """Trained heads: what can be added to one."""


@app.command()
def vocabulary(
    model: options.Model,
    data: Data,
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="PATH", help="A file, or the head's folder, from which its drafter then takes it."
        ),
    ],
    size: Annotated[int, typer.Option("--size", min=1, help="Tokens at most, the most frequent.")] = 8192,
    verbose: options.Verbose = False,
) -> None:
    """Count the tokens of answers, so that EAGLE heads draft from the most frequent ones alone (FR-Spec).

    The text: JSON lines of messages, of which the answers count, or what `slipstream train answers` wrote.

    Example: slipstream heads vocabulary -m Qwen/Qwen3-8B --data answers.jsonl --out heads/qwen3, then
    slipstream generate -m Qwen/Qwen3-8B -d eagle2 --draft heads/qwen3 "Why is the sky blue?"
    """
    from slipstream.drafting.draft_vocabulary import VOCABULARY_FILE, count_vocabulary
    from slipstream.training.data.answer_text import answers_of

    target, tokenizer = load_target(model, None, None)
    counted = [answer for path in data for answer in answers_of(path, target, tokenizer)]
    found = count_vocabulary(counted, size, target)
    file = out / VOCABULARY_FILE if out.is_dir() else out
    found.save(file)
    known = set(found.ids.tolist())
    num_tokens = sum(map(len, counted))
    covered = sum(token in known for answer in counted for token in answer) / num_tokens
    print(f"{file}: {len(found)} of {target.vocab_size} tokens, {covered:.1%} of the {num_tokens:,} counted")
