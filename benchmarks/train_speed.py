r"""How many tokens a second an EAGLE head of a target is trained on: without padding in the target's precision, and as
a plain loop does it, in padded passes and float32.

    python benchmarks/train_speed.py -m HuggingFaceTB/SmolLM2-135M-Instruct --data dialogues.jsonl --threads 1

Seconds of the processors are reported beside those of the clock: on a machine that does other work they alone tell.
Prints a table and, as its last line, the record as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from records import provenance, write_record
from slipstream.cli.training_data import load_target, read_dialogues
from slipstream.methods.eagle.settings import EagleSettings
from slipstream.target.target import Target
from slipstream.training.data.dialogues import Dialogue
from slipstream.training.run import frozen
from slipstream.training.runs import EagleRun

VARIANTS: Mapping[str, tuple[bool, Mapping[str, Any]]] = {
    "padded, float32 target, all logits": (False, {"precision": "fp32"}),
    "packed, fp32, all logits": (True, {"precision": "fp32"}),
    "packed, auto, all logits": (True, {}),
    "packed, auto, 8192 logits": (True, {"loss_vocabulary": 8192}),
    "packed, auto, 8192 logits, three steps ahead": (True, {"loss_vocabulary": 8192, "steps_ahead": 3}),
}
"""A row's name: whether the target takes packed texts, and settings. The head's own rows are packed in all of them."""


def main() -> int:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--limit", type=int, default=200, help="examples read")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each variant, after one that is not")
    parser.add_argument("--tokens-per-step", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name, (packed, settings) in VARIANTS.items():
        target, dialogues = loaded(options, None if packed else "float32")
        how = EagleSettings(tokens_per_step=options.tokens_per_step, **settings)
        rows.append({"variant": name, **measured(target, dialogues, how, packed, options.steps)})
        print(shown(rows[-1]), flush=True)
    record = {
        "what": (__doc__ or "").splitlines()[0],
        "provenance": provenance(target, model=options.model, threads=options.threads, steps=options.steps),
        "rows": rows,
    }
    if options.out is not None:
        write_record(record, options.out)
    print(json.dumps(record))
    return 0


def loaded(options: argparse.Namespace, dtype: str | None) -> tuple[Target, list[Dialogue]]:
    """The target in a dtype (None: its own), and its dialogues."""
    target, tokenizer = load_target(options.model, dtype, None)
    how = {"answers": "data", "how": {}, "limit": options.limit, "max_length": 2048}
    return target, read_dialogues(target, tokenizer, options.data, Path(), **how)


def measured(
    target: Target, dialogues: Sequence[Dialogue], settings: EagleSettings, packed: bool, steps: int
) -> dict[str, Any]:
    """Medians over steps: the target's features and the optimizer step, apart, in milliseconds a token."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    with tempfile.TemporaryDirectory() as out, frozen(target.model):
        run = EagleRun(target, dialogues, Path(out), settings)
        run.features.packed = packed and run.features.packed
        features, steps_, counts = [], [], []
        for step in range(steps + 1):
            indices = run.plan.epoch(0)[step % len(run.plan.epoch(0))]
            counts.append(sum(len(run.dialogues[index].token_ids) for index in indices))
            features.append(timed(lambda chosen=indices: run.features(chosen)))
            batch = run.batch(indices)
            steps_.append(timed(lambda one=batch: run.train_step(one)))
    result: dict[str, Any] = {}
    for what, taken in (("features", features), ("step", steps_)):
        for place, kind in enumerate(("wall", "cpu")):
            each = [1000 * one[place] / count for one, count in zip(taken[1:], counts[1:], strict=True)]
            result[f"{what}_{kind}_ms_per_token"] = round(statistics.median(each), 4)
    for when, parts in (("first_epoch", ("features", "step")), ("cached_epochs", ("step",))):
        for kind in ("wall", "cpu"):
            total = sum(result[f"{part}_{kind}_ms_per_token"] for part in parts)
            result[f"{when}_tokens_per_{kind}_s"] = round(1000 / total, 1)
    return result


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock and of the processors."""
    began = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began[0], time.process_time() - began[1]


def shown(row: Mapping[str, Any]) -> str:
    """A line of the table."""
    features, step = row["features_cpu_ms_per_token"], row["step_cpu_ms_per_token"]
    first, later = row["first_epoch_tokens_per_cpu_s"], row["cached_epochs_tokens_per_cpu_s"]
    return (
        f"{row['variant']:46} features {features:.2f} and step {step:.2f} processor-ms a token; "
        f"first epoch {first:,.0f}, with features on disk {later:,.0f} tokens a processor-second"
    )


if __name__ == "__main__":
    raise SystemExit(main())
