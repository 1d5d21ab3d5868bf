"""Methods against plain decoding on the six evaluation files: tau, acceptance, speed in one run, identity.

    python benchmarks/eval_files.py --data ../shared/data/eval --prompts 10 --out benchmarks/records/eval-demo.json

The files hold one question a line (`turns`), as EAGLE and Spec-Bench ship them; they are not part of this repository.
Every method answers a prompt before any sees the next, so that drift of the machine hits all alike.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from records import (
    TASKS,
    ExactModels,
    Methods,
    load_methods,
    missing_task,
    provenance,
    read_questions,
    table,
    task_names,
    write_record,
)

from slipstream.bench.comparison import PLAIN, Answer, Comparison, summarise
from slipstream.bench.prompts import Prompt

METHODS: Methods = {
    "plain": ("plain", {}),
    "layer-skip": ("layer-skip", {}),
    "layer-skip-chain": ("layer-skip", {"tree": "chain"}),
    "eagle2-60": ("eagle2", {"width": 10, "depth": 6, "total": 60}),
    "eagle2": ("eagle2", {}),
    "eagle": ("eagle", {}),
    "hydra-static": ("hydra", {"tree": "static"}),
    "hydra": ("hydra", {}),
    "medusa-static": ("medusa", {"tree": "static"}),
    "medusa": ("medusa", {}),
    "draft-model-chain": ("draft-model", {"tree": "chain"}),
    "draft-model": ("draft-model", {}),
    "prompt-lookup-published": ("prompt-lookup", {"branches": 1}),
    "prompt-lookup": ("prompt-lookup", {}),
    "lookahead": ("lookahead", {}),
}
"""All nine at their defaults, which size trees by measured cost where they can, and in published shapes."""
MORE: Methods = {"eagle2-25": ("eagle2", {"width": 10, "depth": 5, "total": 25})}  # only if asked for by --methods


def main() -> int:
    """Run, print the table, write the record. Exit 1 if any answer differs from plain decoding in float64 too."""
    options = parse_arguments()
    if missing := missing_task(options.data):
        print(f"skipped: {missing}.jsonl is not in {options.data}; give the files' folder with --data")
        return int(options.out is not None)
    if options.threads:
        torch.set_num_threads(options.threads)
    methods = {name: {**METHODS, **MORE}[name] for name in options.methods}
    models = load_methods(options.model, methods, dtype=options.dtype, device=options.device)
    source = provenance(
        models[PLAIN].target,
        model=options.model,
        seed=options.seed,
        prompts_per_task=options.prompts,
        max_new_tokens=options.max_new_tokens,
    )
    comparison = Comparison(
        models=models,
        exact=ExactModels(options.model, methods, device=options.device),
        temperatures=(0.0, 1.0),
        seed=options.seed,
        max_new_tokens=options.max_new_tokens,
    )
    began = time.perf_counter()
    answers = {
        task: run_task(comparison, read_questions(options.data, task, options.prompts)) for task in options.tasks
    }
    record = {
        "what": __doc__.splitlines()[0] if __doc__ else "",
        "provenance": source,
        "wall_s": round(time.perf_counter() - began, 1),
        "tasks": {task: [totals.to_dict() for totals in summarise(found)] for task, found in answers.items()},
        "all": [totals.to_dict() for totals in summarise([one for found in answers.values() for one in found])],
    }
    print(table(record))
    if options.out is not None:
        write_record(record, options.out)
    return int(any(totals["verdicts"]["fault"] for totals in record["all"]))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/eval"), help="folder of the question files")
    parser.add_argument("-m", "--model", default="demo")
    parser.add_argument("--dtype")
    parser.add_argument("--device")
    parser.add_argument("--methods", type=method_names, default=[name for name in METHODS if name != PLAIN])
    parser.add_argument("--tasks", type=task_names, default=list(TASKS), help="of the six, separated by commas")
    parser.add_argument("--prompts", type=int, default=10, help="questions of each file, first turn only")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--out", type=Path, help="write the record here")
    return parser.parse_args()


def method_names(text: str) -> list[str]:
    """Names of `METHODS` or `MORE` separated by commas."""
    names = text.split(",")
    known = {**METHODS, **MORE}
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"unknown method {unknown[0]!r}; choose from {', '.join(known)}")
    return [name for name in names if name != PLAIN]


def run_task(comparison: Comparison, prompts: Sequence[Prompt]) -> list[Answer]:
    """All answers to a task's prompts."""
    comparison.warm_up(prompts[0])
    answers: list[Answer] = []
    for number, prompt in enumerate(prompts):
        answers.extend(comparison.answers(prompt, first=number))
        print(f"{prompt.kind} {number + 1}/{len(prompts)}", file=sys.stderr)
    return answers


if __name__ == "__main__":
    sys.exit(main())
