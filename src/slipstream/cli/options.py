"""Options that several commands share, so that a name means the same everywhere. Help texts state today's behaviour."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from slipstream.errors import InputError

VERBOSE = "slipstream.verbose"
"""Key in the context's `meta` under which `-v` is remembered."""


def _set_verbose(ctx: typer.Context, value: bool) -> bool:
    if value:
        ctx.meta[VERBOSE] = True
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    return value


ASKING, LOADING, SAMPLING, DRAFTING = "Prompt", "Model", "Choice of tokens", "Draft"

Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", callback=_set_verbose, help="Show log messages, and tracebacks of errors.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead.")]

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        rich_help_panel=LOADING,
        help="A hub id, a folder, 'smollm2' (SmolLM2-135M-Instruct from a wheel) or 'tiny' (inside the package).",
    ),
]
Method = Annotated[
    str,
    typer.Option(
        "--drafter",
        "-d",
        metavar="METHOD",
        rich_help_panel=LOADING,
        help="How to draft; `slipstream methods` lists them.",
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft", metavar="PATH", rich_help_panel=LOADING, help="The drafter's artefact, for methods that need one."
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        rich_help_panel=LOADING,
        help="float32, float64, bfloat16 or float16, also fp32, fp64, bf16, fp16; default: as saved; on a CPU float32 "
        "for 'tiny', and for 'smollm2' unless the processor multiplies bfloat16.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="DEVICE", rich_help_panel=LOADING, help="cpu, cuda, cuda:1; default: cuda if there is one."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        rich_help_panel=LOADING,
        help="Of PyTorch on a CPU; default: 1 for models below 25 million parameters, else PyTorch's.",
    ),
]
TpSize = Annotated[
    int | None,
    typer.Option(
        "--tp-size",
        metavar="N",
        rich_help_panel=LOADING,
        help="Share the weights among N processes, which torchrun --nproc_per_node N starts; the first one prints.",
    ),
]
Attention = Annotated[
    str | None,
    typer.Option(
        "--attention", metavar="KIND", rich_help_panel=LOADING, help="sdpa or eager; others take no tree mask."
    ),
]
Runtime = Annotated[
    str | None,
    typer.Option(
        "--runtime",
        metavar="KIND",
        rich_help_panel=LOADING,
        help="eager; packed: on a CPU, weights are packed for few rows, which takes as much memory again; "
        "compiled: layers are compiled beside the first passes, too; captured: on CUDA, drafts and verifications "
        "become graphs. auto (the default): packed where that is faster and memory is plenty, else eager.",
    ),
]

Colour = Annotated[
    bool | None,
    typer.Option(
        "--colour/--no-colour",
        help="Mark drafted text, green and underlined; default: on a terminal, unless NO_COLOR is set.",
    ),
]
System = Annotated[
    str | None,
    typer.Option("--system", metavar="TEXT", rich_help_panel=ASKING, help="A system message to begin with."),
]
Messages = Annotated[
    Path | None,
    typer.Option(
        "--messages",
        metavar="FILE",
        rich_help_panel=ASKING,
        help="A conversation to go on with: a JSON list of messages, such as `/save` in a chat writes.",
    ),
]
Template = Annotated[
    list[str] | None,
    typer.Option(
        "--template",
        metavar="NAME=VALUE",
        rich_help_panel=ASKING,
        help="An argument of the model's chat template, such as enable_thinking=false; repeatable.",
    ),
]

Temperature = Annotated[
    float | None,
    typer.Option("--temperature", "-t", rich_help_panel=SAMPLING, help="0 decodes greedily; default: the model's own."),
]
TopP = Annotated[float | None, typer.Option("--top-p", rich_help_panel=SAMPLING, help="Nucleus of this probability.")]
TopK = Annotated[
    int | None, typer.Option("--top-k", rich_help_panel=SAMPLING, help="Among the k most probable tokens.")
]
MinP = Annotated[
    float | None,
    typer.Option("--min-p", rich_help_panel=SAMPLING, help="Drop tokens below this fraction of the most probable one."),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", rich_help_panel=SAMPLING, help="Same seed, same text; drawn and reported if not given."),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        "--repetition-penalty", rich_help_panel=SAMPLING, help="Above 1: tokens already there get less likely."
    ),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        "-n",
        rich_help_panel=SAMPLING,
        help="Tokens of an answer at most; default: the model's own setting, else 256.",
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", rich_help_panel=SAMPLING, help="End before this text; may be repeated."),
]
Verification = Annotated[
    str,
    typer.Option(
        "--verification",
        metavar="RULE",
        rich_help_panel=SAMPLING,
        help="coupled: token for token plain sampling; rejection: the published rules, the same in distribution.",
    ),
]

SkipSet = Annotated[
    str | None,
    typer.Option(
        "--skip-set",
        metavar="FILE|NAME",
        rich_help_panel=DRAFTING,
        help="layer-skip: the sub-layers to skip; a file, a task that `skip search` found a set for (code), or "
        "'adaptive': refined while generating.",
    ),
]


def parse_vocabulary(text: str) -> int | str:
    """A number of tokens, a file, or "all"."""
    return int(text) if text.isdecimal() else text


DraftVocabulary = Annotated[
    Any,  # int, str or None; typer has no unions
    typer.Option(
        "--draft-vocabulary",
        metavar="N|FILE|all",
        parser=parse_vocabulary,
        rich_help_panel=DRAFTING,
        help="eagle2, eagle: draft from the N most frequent tokens, from those in a file of `slipstream heads "
        "vocabulary`, or from all; default: those that lie beside the head, else all.",
    ),
]
Tree = Annotated[
    str | None,
    typer.Option(
        "--tree",
        metavar="SHAPE",
        rich_help_panel=DRAFTING,
        help="layer-skip, draft-model: dynamic or chain. eagle3: dynamic, static or chain. medusa, hydra: dynamic, "
        "static or a published tree's name.",
    ),
]
Width = Annotated[
    int | None, typer.Option("--width", rich_help_panel=DRAFTING, help="Nodes of the tree expanded at each level.")
]
Depth = Annotated[int | None, typer.Option("--depth", rich_help_panel=DRAFTING, help="Levels of the tree.")]


def parse_total(text: str) -> int | str:
    """A number of drafted tokens, or "auto", perhaps with a limit: "auto:40"."""
    if text.partition(":")[0] == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a number nor 'auto'") from None


Total = Annotated[
    Any,  # int, "auto" or None; typer has no unions
    typer.Option(
        "--total",
        metavar="N",
        parser=parse_total,
        rich_help_panel=DRAFTING,
        help="Drafted tokens verified at once, of heads, draft models, layer-skip and lookup methods; the root is not "
        "counted. 'auto' (the default): by measured cost.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class LoadingOptions:
    """Where a model runs and how: what `slipstream.load` takes by these names."""

    dtype: Dtype = None
    device: Device = None
    attention: Attention = None
    runtime: Runtime = None
    threads: Threads = None


@dataclass(frozen=True, kw_only=True)
class DraftingOptions:
    """How one method drafts: options of methods, by their names."""

    draft: Draft = None
    skip_set: SkipSet = None
    draft_vocabulary: DraftVocabulary = None
    tree: Tree = None
    width: Width = None
    depth: Depth = None
    total: Total = None


Further = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        "-o",
        metavar="NAME=VALUE",
        rich_help_panel=DRAFTING,
        help="Any other option of the method (`slipstream methods --json` names them), such as length=8; repeatable.",
    ),
]


def parse_further(texts: list[str] | None) -> dict[str, Any]:
    """The options given as NAME=VALUE: a JSON value where it is one (8, 0.5, true), else the text itself."""
    return dict(_parse_pair("--option", text, "length=8") for text in texts or ())


def parse_template(texts: list[str] | None) -> dict[str, Any]:
    """The arguments of a chat template, given in the same way."""
    return dict(_parse_pair("--template", text, "enable_thinking=false") for text in texts or ())


def _parse_pair(flag: str, text: str, example: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise InputError(f"{flag} {text!r} is not of the form NAME=VALUE, such as {example}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def given(**options: Any) -> dict[str, Any]:
    """The options that the user gave: those that are not None. The rest is left to the library's defaults."""
    return {name: value for name, value in options.items() if value is not None}
