"""Methods against plain decoding on the six evaluation files: tau, acceptance, speed in one run, identity.

    python benchmarks/eval_files.py --data ../shared/data/eval --prompts 10 --out benchmarks/records/eval-demo.json

The files hold one question a line (`turns`), as EAGLE and Spec-Bench ship them; they are not part of this repository.
Every method answers a prompt before any sees the next, so that drift of the machine hits all alike.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

import slipstream
from slipstream.bench.comparison import PLAIN, Answer, Comparison, summarise
from slipstream.bench.prompts import Prompt

TASKS = ("mt_bench", "humaneval", "gsm8k", "alpaca", "cnn_dm", "nq")
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("plain", {}),
    "layer-skip": ("layer-skip", {}),
    "layer-skip-chain": ("layer-skip", {"tree": "chain"}),
    "prompt-lookup": ("prompt-lookup", {}),
    "prompt-lookup-published": ("prompt-lookup", {"branches": 1}),
}


def main() -> int:
    """Run, print the table, write the record. Exit 1 if any answer differs from plain decoding in float64 too."""
    options = parse_arguments()
    missing = [task for task in TASKS if not (options.data / f"{task}.jsonl").is_file()]
    if missing:
        print(f"skipped: {missing[0]}.jsonl is not in {options.data}; give the files' folder with --data")
        return int(options.out is not None)
    if options.threads:
        torch.set_num_threads(options.threads)
    models = load(options)
    source = provenance(models[PLAIN], options)  # before the run: a commit made meanwhile is not what ran
    comparison = Comparison(
        models=models,
        exact=ExactModels(options),
        temperatures=(0.0, 1.0),
        seed=options.seed,
        max_new_tokens=options.max_new_tokens,
    )
    began = time.perf_counter()
    answers = {task: run_task(comparison, read_questions(options.data, task, options.prompts)) for task in TASKS}
    record = {
        "what": __doc__.splitlines()[0] if __doc__ else "",
        "provenance": source,
        "wall_s": round(time.perf_counter() - began, 1),
        "tasks": {task: [totals.to_dict() for totals in summarise(found)] for task, found in answers.items()},
        "all": [totals.to_dict() for totals in summarise([one for found in answers.values() for one in found])],
    }
    print(table(record))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    return int(any(totals["verdicts"]["fault"] for totals in record["all"]))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/eval"), help="folder of the question files")
    parser.add_argument("-m", "--model", default="demo")
    parser.add_argument("--dtype")
    parser.add_argument("--device")
    parser.add_argument("--methods", type=method_names, default=[name for name in METHODS if name != PLAIN])
    parser.add_argument("--prompts", type=int, default=10, help="questions of each file, first turn only")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--out", type=Path, help="write the record here")
    return parser.parse_args()


def method_names(text: str) -> list[str]:
    """Names of `METHODS` separated by commas."""
    names = text.split(",")
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown method {unknown[0]!r}; choose from {', '.join(METHODS)}")
    return [name for name in names if name != PLAIN]


def load(options: argparse.Namespace, dtype: str | None = None) -> dict[str, slipstream.Model]:
    """All methods over one target."""
    plain = slipstream.load(options.model, PLAIN, dtype=dtype or options.dtype, device=options.device)
    models = {PLAIN: plain}
    for name in options.methods:
        method, settings = METHODS[name]
        models[name] = slipstream.load(plain.target.model, method, tokenizer=plain.tokenizer, **settings)
    return models


class ExactModels:
    """The same methods in float64, loaded when a mismatch first asks for them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._models: dict[str, slipstream.Model] | None = None

    def __call__(self, name: str) -> slipstream.Model:
        if self._models is None:
            self._models = load(self._options, dtype="float64")
        return self._models[name]


def read_questions(folder: Path, task: str, count: int) -> list[Prompt]:
    """The first turns of the first `count` questions of a task."""
    lines = (folder / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    questions = [json.loads(line) for line in lines]
    return [Prompt(id=one["question_id"], kind=task, turns=(one["turns"][0],)) for one in questions]


def run_task(comparison: Comparison, prompts: Sequence[Prompt]) -> list[Answer]:
    """All answers to a task's prompts."""
    comparison.warm_up(prompts[0])
    answers: list[Answer] = []
    for number, prompt in enumerate(prompts):
        answers.extend(comparison.answers(prompt, first=number))
        print(f"{prompt.kind} {number + 1}/{len(prompts)}", file=sys.stderr)
    return answers


def provenance(model: slipstream.Model, options: argparse.Namespace) -> dict[str, Any]:
    """Command, commit, versions, hardware, model."""
    describe = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False)
    device = model.target.device
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "slipstream": slipstream.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "model": options.model,
        "target": model.target.hash,
        "dtype": str(model.target.dtype).removeprefix("torch."),
        "seed": options.seed,
        "prompts_per_task": options.prompts,
        "max_new_tokens": options.max_new_tokens,
    }


def cpu_name() -> str:
    """The processor's name and number of cores."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def table(record: dict[str, Any]) -> str:
    """Tau / ratio to plain per task, and how many answers are identical, rounding, faults."""
    header = (
        f"{'T':>3} {'method':24}" + "".join(f"{task:>14}" for task in (*TASKS, "all")) + "   identical/rounding/fault"
    )
    lines = [header]
    for row, totals in enumerate(record["all"]):
        columns = [*(record["tasks"][task] for task in TASKS), record["all"]]
        cells = []
        for column in columns:
            plain = next(
                one for one in column if one["method"] == PLAIN and one["temperature"] == totals["temperature"]
            )
            ratio = column[row]["tokens_per_second"] / plain["tokens_per_second"]
            cells.append(f"{column[row]['tau']:8.2f} {ratio:4.2f}x")
        verdicts = totals["verdicts"]
        counts = "/".join(str(verdicts[name]) for name in ("identical", "rounding", "fault"))
        lines.append(f"{totals['temperature']:3g} {totals['method']:24}" + "".join(cells) + f"   {counts}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
