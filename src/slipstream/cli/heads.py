"""`slipstream heads`: looking at trained heads, and what can be put beside one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli import options
from slipstream.cli.outputs import check_out_folder
from slipstream.cli.training_data import Data, load_target

app = typer.Typer(
    name="heads", no_args_is_help=True, help="Trained heads: whether one fits and pays, and what can be put beside one."
)


@app.callback()
def heads() -> None:
    """Trained heads: whether one fits and pays, and what can be put beside one."""


@app.command()
def check(
    model: options.Model,
    draft: options.Draft = None,
    drafter: options.Method = "auto",
    temperature: Annotated[float, typer.Option("--temperature", "-t", min=0.0, help="0 decodes greedily.")] = 0.0,
    seconds: Annotated[float, typer.Option("--seconds", min=1.0, help="Begin no further prompt after so long.")] = 90.0,
    dtype: options.Dtype = None,
    device: options.Device = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Say in two minutes whether a head fits a model and pays on this machine.

    A head that was made for another model, or is read in a wrong way, drafts badly and says nothing. On the shipped
    prompts this measures how often each drafted position is accepted, and times answers in turns with plain decoding.
    An EAGLE-3 head is also tried with the layers before and after those that it names, and with the other feedback.

    Example: slipstream heads check -m smollm2
    """
    from slipstream.bench.head_check import check_head
    from slipstream.cli.answering import note
    from slipstream.cli.loading import load

    plain = load(model, "plain", dtype=dtype, device=device, threads=threads)
    found = check_head(plain, draft, method=drafter, temperature=temperature, seconds=seconds, report=note)
    if as_json:
        print(json.dumps(found.to_dict()))
        return
    positions = " ".join(f"{share:.0%}" for share in found.acceptance)
    print(f"{found.method} on {len(found.ratios)} prompts, temperature {temperature:g}")
    print(f"accepted by position: {positions}; {found.tau:.2f} tokens a pass with drafts sized by measured cost")
    for reading in found.readings:
        print(f"read with {reading}: {reading.tau:.2f} tokens a pass with chains, instead of {found.chain_tau:.2f}")
    print(f"{found.identical} of {len(found.ratios)} answers are plain decoding's to the last token")
    print(found.fit)
    print(found.pay)


@app.command()
def export(
    model: options.Model,
    out: Annotated[
        Path, typer.Option("--out", callback=check_out_folder, metavar="FOLDER", help="What the head is written to.")
    ],
    layout: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="eagle: EAGLE-1 and 2 as SafeAILab has them; eagle3: EAGLE-3 as SafeAILab, SpecForge and SGLang have "
            "it; speculators: EAGLE-3 for vLLM.",
        ),
    ],
    draft: options.Draft = None,
    verbose: options.Verbose = False,
) -> None:
    """Write a head so that other codes read it; its numbers stay as they are stored.

    An EAGLE-3 head that was trained here has no LM head: it drafts with rows of the model's. They are written too.

    Example: slipstream heads export -m Qwen/Qwen3-8B --draft heads/qwen3 --format speculators --out qwen3-vllm
    """
    from slipstream.errors import InputError
    from slipstream.methods.export import FORMATS, export_head
    from slipstream.methods.registry import packaged_artefact

    target, _ = load_target(model, None, None)
    kind = FORMATS.get(layout, ("eagle", None))[0]
    source = draft or packaged_artefact("eagle2" if kind == "eagle" else kind, target.hash)
    if source is None:
        raise InputError(f"no such head ships for {target.name}; give one with --draft")
    export_head(source, out, target, layout)
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    print(f"{out}: the head in layout {layout}, {size / 1e6:.1f} MB")


@app.command()
def vocabulary(
    model: options.Model,
    data: Data,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            callback=check_out_folder,
            metavar="FOLDER",
            help="The head's folder, from which its drafter then takes it, or another.",
        ),
    ],
    size: Annotated[int, typer.Option("--size", min=1, help="Tokens at most, the most frequent.")] = 8192,
    verbose: options.Verbose = False,
) -> None:
    """Count the tokens of answers, so that EAGLE heads draft from the most frequent ones alone (FR-Spec).

    The text: JSON lines of messages, of which the answers count, or what `slipstream train answers` wrote.

    Example: slipstream heads vocabulary -m Qwen/Qwen3-8B --data answers.jsonl --out heads/qwen3, then
    slipstream generate -m Qwen/Qwen3-8B -d eagle2 --draft heads/qwen3 -p "Why is the sky blue?"
    """
    from slipstream.drafting.draft_vocabulary import VOCABULARY_FILE, count_vocabulary
    from slipstream.training.data.answer_text import answers_of

    target, tokenizer = load_target(model, None, None)
    counted = [answer for path in data for answer in answers_of(path, target, tokenizer)]
    found = count_vocabulary(counted, size, target)
    file = out / VOCABULARY_FILE
    found.save(file)
    known = set(found.ids.tolist())
    num_tokens = sum(map(len, counted))
    covered = sum(token in known for answer in counted for token in answer) / num_tokens
    print(f"{file}: {len(found)} of {target.vocab_size} tokens, {covered:.1%} of the {num_tokens:,} counted")
