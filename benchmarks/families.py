r"""Which families of `transformers` are decoded, and whether every drafter keeps their text: tiny random models of all.

    python benchmarks/families.py --out benchmarks/records/families.json --table docs/families.md

Every class that continues text is built in a few layers of random weights, in float64 where transformers can run it so.
Plain decoding is compared with transformers' own `generate`, and each drafter with plain decoding, greedy and sampled.
Each model has a process of its own, so that one that crashes or hangs is one row. A run that was interrupted goes on
where it stopped, and each row names the commit that made it; --again NAME repeats rows.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import platform
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tiny_models
import torch
import transformers
from transformers import PreTrainedModel

import slipstream
from records import write_record
from slipstream.errors import SlipstreamError, first_line
from slipstream.methods.eagle.checkpoint import save_head
from slipstream.methods.eagle.head import EagleHead, HeadSizes
from slipstream.methods.eagle3.checkpoint import save_head as save_eagle3
from slipstream.methods.eagle3.head import Eagle3Head, Eagle3Sizes, default_states
from slipstream.methods.hydra.checkpoint import save_heads as save_hydra
from slipstream.methods.hydra.head import HydraHeads, HydraSizes, PrefixSizes
from slipstream.methods.medusa.checkpoint import save_heads as save_medusa
from slipstream.methods.medusa.head import MedusaHeads, MedusaSizes
from slipstream.methods.registry import build_drafter
from slipstream.records.machine import commit, cpu_name, shown_command
from slipstream.target.target import Target

NUM_HEADS, PATIENCE_S = 3, 180
PROMPT_LENGTH, NEW_TOKENS = 21, 14
SAMPLINGS: dict[str, dict[str, Any]] = {"greedy": {"temperature": 0.0}, "sampled": {"temperature": 1.0, "seed": 5}}
_TREE = {"width": 6, "depth": 3, "total": 12}
DRAFTERS: dict[str, dict[str, Any]] = {
    "layer-skip": _TREE,
    "eagle2": _TREE,
    "eagle": {"total": "all"},
    "eagle3": _TREE,
    "medusa": _TREE,
    "hydra": _TREE,
    "draft-model": _TREE,
    "prompt-lookup": {"length": 4, "branches": 2},
    "lookahead": {"window": 3, "level": 3, "guesses": 3},
}
Row = dict[str, Any]


def main() -> int:
    """Check what is missing in the record, row by row, and write record and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--only", nargs="*", metavar="NAME", help="Model types, as config.json names them.")
    parser.add_argument("--again", nargs="*", default=[], metavar="NAME", help="Rows to be made anew.")
    parser.add_argument("--patience", type=int, default=PATIENCE_S, metavar="S", help="Seconds for a model at most.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {"rows": {}}
    rows: dict[str, Row] = {
        name: row for name, row in record["rows"].items() if name not in options.again and _is_whole(row)
    }
    record = {"what": (__doc__ or "").splitlines()[0], "provenance": provenance(), "rows": rows}
    names = options.only or tiny_models.names()
    for name in names:
        if name not in rows:
            rows[name] = {**guarded(name, options.patience), "commit": record["provenance"]["commit"]}
            print(f"{name:28}{rows[name]['verdict']:12}{rows[name].get('reason') or ''}", flush=True)
            record["rows"] = {one: rows[one] for one in sorted(rows)}
            record["complete"] = set(tiny_models.names()) <= set(rows)
            write_record(record, options.out)
    if options.table is not None:
        options.table.write_text("\n".join(table(record)) + "\n", encoding="utf-8")
    return int(any(row["verdict"] == "differs" for row in rows.values()))


def _is_whole(row: Row) -> bool:
    """Whether every drafter that there is now was tried, if any was."""
    return "drafters" not in row or set(row["drafters"]) == set(DRAFTERS)


def provenance() -> dict[str, Any]:
    """What the rows were made with."""
    return {
        "command": shown_command(["python", *sys.argv]),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "slipstream": slipstream.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hardware": cpu_name(),
        "threads": 1,
        "prompt_tokens": PROMPT_LENGTH,
        "new_tokens": NEW_TOKENS,
        "drafters": DRAFTERS,
    }


def guarded(name: str, patience_s: float) -> Row:
    """The row of a model type, made in a process that may crash or hang."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send_row, args=(name, theirs))
    process.start()
    theirs.close()
    row: Row | None = None
    if ours.poll(patience_s):
        try:
            row = ours.recv()
        except EOFError:
            row = None
        process.join(10)
    if process.is_alive():
        process.kill()
        process.join()
        return row or {"verdict": "crashed", "reason": f"no answer within {patience_s:.0f} s"}
    return row or {"verdict": "crashed", "reason": f"the process ended with code {process.exitcode}"}


def _send_row(name: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    try:
        row = checked(name)
    except Exception as error:
        row = {"verdict": "traceback", "reason": f"{type(error).__name__}: {first_line(error)}"}
    pipe.send(row)


def checked(name: str) -> Row:
    """Build the model of a type, load it, and compare its texts."""
    try:
        model = runnable(name)
    except Exception as error:
        return {"verdict": "not built", "reason": f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]}
    about = {
        "class": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": model.num_parameters(),
    }
    try:
        plain = slipstream.load(model, "plain")
    except SlipstreamError as error:
        return {"verdict": "refused", "reason": str(error).replace(type(model).__name__, "the model"), **about}
    prompt = prompt_ids(plain.target.vocab_size)
    texts = {how: plain.generate(prompt, **settings(how)).token_ids for how in SAMPLINGS}
    row: Row = {"verdict": "accepted", "reason": None, **about, "generate": of_generate(model, prompt, texts["greedy"])}
    with tempfile.TemporaryDirectory() as folder:
        row["drafters"] = {
            drafter: of_drafter(plain.target, drafter, Path(folder), prompt, texts) for drafter in DRAFTERS
        }
    findings = [row["generate"], *row["drafters"].values()]
    if bad := next((one for one in findings if one.startswith(("differs", "traceback"))), None):
        row |= {"verdict": "differs", "reason": bad}
    return row


def runnable(name: str) -> PreTrainedModel:
    """A model of a type in float64, or in float32 where transformers itself cannot run it so."""
    model = tiny_models.tiny(name)
    try:
        with torch.inference_mode():
            model(input_ids=torch.arange(2, 6)[None])
    except RuntimeError:
        return tiny_models.tiny(name, dtype=torch.float32)
    except Exception:
        return model
    return model


def prompt_ids(vocab_size: int) -> list[int]:
    """A text that repeats itself, so that looked-up drafts are right now and then; no special ids."""
    rng = torch.Generator().manual_seed(0)
    return (torch.randint(2, min(vocab_size, 50), (PROMPT_LENGTH // 3,), generator=rng).tolist()) * 3


def settings(how: str) -> dict[str, Any]:
    """Of a generation: greedy or sampled."""
    return {"max_new_tokens": NEW_TOKENS, "eos_token_id": [], **SAMPLINGS[how]}


def of_generate(model: PreTrainedModel, prompt: list[int], ours: list[int]) -> str:
    """How plain decoding compares with transformers' own, greedily."""
    ids = torch.tensor([prompt])
    try:
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0
        )
    except Exception as error:
        return f"generate fails: {type(error).__name__}: {first_line(error)}"[:160]
    theirs = found[0, len(prompt) :].tolist()
    return "same" if theirs == ours else f"differs from generate at token {_first_difference(theirs, ours)}"


def of_drafter(target: Target, drafter: str, folder: Path, prompt: list[int], texts: dict[str, list[int]]) -> str:
    """How a drafter's texts compare with plain decoding's."""
    accepted = 0
    try:
        built = build_drafter(drafter, target, {**DRAFTERS[drafter], **artefact(target, drafter, folder)})
        target.check_features(built.features)
        model = slipstream.Model(target, built)
        for how, text in texts.items():
            answer = model.generate(prompt, **settings(how))
            accepted += answer.stats.num_accepted
            if answer.token_ids != text:
                return f"differs: {drafter}, {how}, at token {_first_difference(answer.token_ids, text)}"
    except SlipstreamError as error:
        return f"refused: {error}".replace(type(target.model).__name__, "the model")
    except Exception as error:
        return f"traceback: {drafter}: {type(error).__name__}: {first_line(error)}"
    return f"same, {accepted} drafted tokens kept"


def _first_difference(one: list[int], other: list[int]) -> int:
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def artefact(target: Target, drafter: str, folder: Path) -> dict[str, Any]:
    """What a drafter reads, made on the spot: heads of random weights, the target's disturbed copy as draft model."""
    if drafter in ("eagle", "eagle2"):
        save_head(_random(EagleHead(HeadSizes.like(target))), folder / "eagle", target)
        return {"draft": folder / "eagle"}
    if drafter == "eagle3":
        save_eagle3(_random(Eagle3Head(*_eagle3_sizes(target))), folder / "eagle3", target)
        return {"draft": folder / "eagle3"}
    if drafter == "medusa":
        sizes = MedusaSizes(num_heads=NUM_HEADS, hidden_size=target.config.hidden_size, num_layers=1)
        save_medusa(_random(MedusaHeads(sizes)), folder / "medusa", target)
        return {"draft": folder / "medusa"}
    if drafter == "hydra":
        hydra = HydraSizes(
            hidden_size=target.config.hidden_size,
            embedding_size=target.model.get_input_embeddings().weight.shape[1],
            num_heads=NUM_HEADS,
            num_layers=1,
            prefix=PrefixSizes.like(target),
        )
        save_hydra(_random(HydraHeads(hydra)), folder / "hydra", target)
        return {"draft": folder / "hydra"}
    if drafter == "draft-model":
        return {"draft": tiny_models.disturbed(target.model)}
    return {}


def _eagle3_sizes(target: Target) -> tuple[Eagle3Sizes, torch.Tensor]:
    """Of a head that drafts half of the vocabulary, its embeddings its own where the target's have another width."""
    layer, width = HeadSizes.like(target), target.model.get_input_embeddings().weight.shape[1]
    ids = torch.arange(0, target.vocab_size, 2)
    sizes = Eagle3Sizes(
        layer=replace(layer, embedding_size=layer.hidden_size, biases=frozenset()),
        target_size=layer.hidden_size,
        states=default_states(target.num_layers),
        draft_vocab_size=len(ids),
        own_embeddings=None if width == layer.hidden_size else target.vocab_size,
    )
    return sizes, ids


def _random(head: torch.nn.Module) -> Any:
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.4)
    return head


# --- the table --------------------------------------------------------------------------------------------------------


def table(record: dict[str, Any]) -> Iterator[str]:
    """docs/families.md."""
    rows: dict[str, Row] = record["rows"]
    by_verdict = {name: [one for one in rows if rows[one]["verdict"] == name] for name in _TITLES}
    versions = record["provenance"]
    yield "# Model families"
    yield ""
    yield "Made by `python benchmarks/families.py` from `benchmarks/records/families.json`; do not edit."
    yield ""
    counts = ", ".join(f"{len(found)} {name}" for name, found in by_verdict.items() if found)
    yield (
        f"Tiny models of random weights, of every class of transformers {versions['transformers']} that continues "
        f"text, image-text models with text alone: {counts}."
    )
    if not record.get("complete"):
        yield ""
        yield f"The run is not complete: {len(rows)} of {len(tiny_models.names())} classes were tried."
    yield ""
    yield (
        f"Each is compared over {versions['new_tokens']} tokens after {versions['prompt_tokens']}: plain decoding with "
        "`generate`, every drafter with plain decoding, greedy and sampled. Windows are shorter than the text. A model "
        "of yours is probed on its own weights whenever it is loaded, whatever stands here."
    )
    for verdict, title in _TITLES.items():
        if by_verdict[verdict]:
            yield from ("", f"## {title}", "")
            yield from _section(verdict, {name: rows[name] for name in by_verdict[verdict]})


_TITLES = {
    "accepted": "Decoded",
    "refused": "Refused at load",
    "differs": "Differs",
    "traceback": "Fails",
    "crashed": "Crashes or hangs",
    "not built": "Not built here",
}


def _section(verdict: str, rows: dict[str, Row]) -> Iterator[str]:
    if verdict == "accepted":
        yield "| model type | class | drafters that cannot draft for it |"
        yield "|---|---|---|"
        for name, row in rows.items():
            without = [
                f"{one}: {said.removeprefix('refused: ')}" for one, said in row["drafters"].items() if "refused" in said
            ]
            yield f"| {name} | {row['class']}{_footnote(row)} | {_cell('; '.join(without))} |"
        return
    yield "| model type | class | why |"
    yield "|---|---|---|"
    for name, row in rows.items():
        yield f"| {name} | {row.get('class', '')} | {_cell(row['reason'])} |"


def _footnote(row: Row) -> str:
    notes = [] if row["dtype"] == "float64" else [row["dtype"]]
    notes += [] if row["generate"] == "same" else [row["generate"]]
    return f" ({'; '.join(notes)})" if notes else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    raise SystemExit(main())
