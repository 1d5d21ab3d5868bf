"""EAGLE-2's dynamic trees against EAGLE-1's static one on the six evaluation files, and what they rest on.

    python benchmarks/draft_trees.py --threads 1 --out benchmarks/records/draft-trees-demo.json

One run, one record: tau and speed of static and dynamic trees, the paper's ablations of value and rerank, layer-skip as
tree and as chain, coupled sampling against the published rule, the drafter's confidence against acceptance, acceptance
by tree position, and two cycles to be drawn. `benchmarks/figures.py` draws the record.

Every method answers a prompt before any sees the next, and who goes first rotates. All answers but those under the
rejection rule are compared with plain decoding token by token; that rule draws its random numbers per drafted node, so
its texts are other samples of the same distribution and cannot be compared so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tallies import (
    DYNAMIC,
    LITTLE_REPETITION,
    SAME_BUDGET,
    STATIC,
    UNCALIBRATED,
    UNCALIBRATED_SAME_BUDGET,
    Tally,
    findings,
)

import slipstream
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
from slipstream.bench.comparison import PLAIN, Comparison
from slipstream.bench.repetition import NGRAM
from slipstream.bench.tree_picture import described
from slipstream.bench.tree_statistics import NUM_BINS, POSITIONS
from slipstream.bench.watching import Cycle, WatchedDrafter
from slipstream.drafting.base import Drafter
from slipstream.methods.eagle.drafter import EagleDrafter
from slipstream.prompts import Prompt

PUBLISHED = {"width": 10, "depth": 6, "total": 60}
LIKE_EAGLE = {"width": 10, "depth": 5, "total": 25}  # EAGLE-1's own budget
METHODS: Methods = {
    PLAIN: (PLAIN, {}),
    STATIC: ("eagle", {"total": "all"}),
    DYNAMIC: ("eagle2", PUBLISHED),
    SAME_BUDGET: ("eagle2", LIKE_EAGLE),
    "eagle2-60-no-value": ("eagle2", {**PUBLISHED, "by_value": False}),
    "eagle2-60-no-rerank": ("eagle2", {**PUBLISHED, "rerank": False}),
    "eagle2-60-neither": ("eagle2", {**PUBLISHED, "by_value": False, "rerank": False}),
    UNCALIBRATED: ("eagle2", {**PUBLISHED, "calibrated": False}),
    UNCALIBRATED_SAME_BUDGET: ("eagle2", {**LIKE_EAGLE, "calibrated": False}),
    "layer-skip-tree": ("layer-skip", {"tree": "dynamic", "width": 4, "depth": 3, "total": 12}),
    "layer-skip-chain": ("layer-skip", {"tree": "chain"}),
}
WATCHED = (STATIC, DYNAMIC, SAME_BUDGET, UNCALIBRATED)
BY_REJECTION = (STATIC, DYNAMIC, SAME_BUDGET, "layer-skip-chain")  # those that also sample by the published rule
QUESTION, QUERIES = "What is 10+2?", ("10+2=", "10+2")  # EAGLE-2's example (section 3.1), as the start of an answer


def main() -> int:
    """Run, print the table, write the record. Exit 1 if any answer differs from plain decoding in float64 too."""
    options = parse_arguments()
    if missing := missing_task(options.data):
        print(f"skipped: {missing}.jsonl is not in {options.data}; give the files' folder with --data")
        return int(options.out is not None)
    if options.threads:
        torch.set_num_threads(options.threads)
    bench = Bench(options)
    record = begun(options, bench.source) if options.resume else {}
    tasks: dict[str, Any] = record.get("tasks", {})
    began = time.perf_counter() - record.get("wall_s", 0.0)
    for task in options.tasks:
        if task not in tasks:
            tasks[task] = bench.run_task(read_questions(options.data, task, options.prompts))
        record = assemble(bench.source, tasks, time.perf_counter() - began)
        if options.out is not None:
            write_record(record, options.out)
    record["cycles"] = [bench.cycle(query) for query in QUERIES]
    if options.out is not None:
        write_record(record, options.out)
    print(table({"tasks": {task: found["rows"] for task, found in tasks.items()}, "all": record["all"]["rows"]}))
    print(json.dumps(record["findings"], indent=1))
    return int(any(row["verdicts"] and row["verdicts"]["fault"] for row in record["all"]["rows"]))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/eval"), help="folder of the question files")
    parser.add_argument("-m", "--model", default="tiny")
    parser.add_argument("--draft", help="the EAGLE head; by default the demo's own")
    parser.add_argument("--dtype")
    parser.add_argument("--device")
    parser.add_argument("--tasks", type=task_names, default=list(TASKS), help="of the six, separated by commas")
    parser.add_argument("--prompts", type=int, default=10, help="questions of each file, first turn only")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--out", type=Path, help="write the record here, task by task")
    parser.add_argument("--resume", action="store_true", help="keep the finished tasks of --out, if the same run")
    return parser.parse_args()


def begun(options: argparse.Namespace, source: Mapping[str, Any]) -> dict[str, Any]:
    """The record that an interrupted run has left; an error if it was another run."""
    if options.out is None:
        raise SystemExit("--resume takes up the record of --out; give --out")
    if not options.out.is_file():
        return {}
    record: dict[str, Any] = json.loads(options.out.read_text(encoding="utf-8"))
    for name, value in record["provenance"].items():
        if name not in ("command", "date") and source[name] != value:
            raise SystemExit(f"{options.out} was begun with {name} {value!r}, not {source[name]!r}; leave out --resume")
    return record


class Bench:
    """The methods over one target, those of `WATCHED` with their trees kept."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        head = {} if options.draft is None else {"draft": options.draft}
        methods = {
            name: (method, {**settings, **(head if method.startswith("eagle") else {})})
            for name, (method, settings) in METHODS.items()
        }
        self.models = load_methods(options.model, methods, dtype=options.dtype, device=options.device)
        self.source = provenance(
            self.models[PLAIN].target,
            model=options.model,
            head=head_hash(self.models[STATIC].drafter),
            seed=options.seed,
            prompts_per_task=options.prompts,
            max_new_tokens=options.max_new_tokens,
        )
        self.watched = {name: WatchedDrafter(self.models[name].drafter) for name in WATCHED}
        for name, drafter in self.watched.items():
            self.models[name] = slipstream.Model(self.models[name].target, drafter, self.models[name].tokenizer)
        self.comparison = Comparison(
            models=self.models,
            exact=ExactModels(options.model, methods, device=options.device),
            temperatures=(0.0, 1.0),
            seed=options.seed,
            max_new_tokens=options.max_new_tokens,
        )

    def run_task(self, prompts: list[Prompt]) -> dict[str, Any]:
        """All that is counted over a task's prompts."""
        self.comparison.warm_up(prompts[0])
        self._forget()
        tally = Tally()
        for number, prompt in enumerate(prompts):
            for answer in self.comparison.answers(prompt, first=number):
                rule = "coupled" if answer.temperature else "greedy"
                cycles = self._cycles(answer.method, answer.output)
                tally.add((answer.temperature, rule, answer.method), answer.output, answer.verdict, cycles)
            for method, output in self._by_rejection(prompt, number):
                tally.add((1.0, "rejection", method), output, None, self._cycles(method, output))
            print(f"{prompt.kind} {number + 1}/{len(prompts)}", file=sys.stderr)
        return tally.to_dict()

    def _by_rejection(self, prompt: Prompt, first: int) -> Iterator[tuple[str, slipstream.Output]]:
        cut = first % len(BY_REJECTION)
        for method in BY_REJECTION[cut:] + BY_REJECTION[:cut]:
            yield (
                method,
                self.models[method].generate(
                    [{"role": "user", "content": prompt.turns[0]}],
                    max_new_tokens=self.options.max_new_tokens,
                    temperature=1.0,
                    seed=self.options.seed + first,
                    verification="rejection",
                ),
            )

    def _cycles(self, method: str, output: slipstream.Output) -> list[Cycle] | None:
        if method not in self.watched:
            return None
        cycles = self.watched[method].take()
        assert len(cycles) == output.stats.num_cycles, "cycles of another answer among those watched"
        return cycles

    def _forget(self) -> None:
        for watched in self.watched.values():
            watched.take()

    def cycle(self, query: str) -> dict[str, Any]:
        """One greedy cycle of the static and of the dynamic tree of equal size, under an answer that begins so."""
        self._forget()
        tokenizer = self.models[PLAIN].tokenizer
        prompt = self.models[PLAIN].encode(QUESTION) + tokenizer.encode(query, add_special_tokens=False)
        plain = self.models[PLAIN].generate(prompt, max_new_tokens=12, temperature=0.0)
        trees = {}
        for method in (STATIC, SAME_BUDGET):
            self.models[method].generate(prompt, max_new_tokens=12, temperature=0.0)
            trees[method] = described(self.watched[method].take()[0], tokenizer)
        return {"question": QUESTION, "query": query, "target_continues": plain.text, "trees": trees}


def head_hash(drafter: Drafter) -> str:
    """Says which head was measured: a hash of its weights."""
    assert isinstance(drafter, EagleDrafter)
    digest = hashlib.sha256()
    for name, tensor in sorted(drafter.head.state_dict().items()):
        digest.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


# -- the record ----------------------------------------------------------------------------------------------------


def assemble(source: Mapping[str, Any], tasks: Mapping[str, Any], wall_s: float) -> dict[str, Any]:
    """The record of the tasks so far, with their sum and what it says."""
    total = Tally()
    for found in tasks.values():
        total.merge(found)
    everything = total.to_dict()
    return {
        "what": __doc__.splitlines()[0] if __doc__ else "",
        "provenance": source,
        "definitions": {
            "methods": {name: {"method": method, **settings} for name, (method, settings) in METHODS.items()},
            "repetition_rate": f"share of {NGRAM}-grams of tokens that occurred before in the same answer",
            "little_repetition": f"answers with a repetition rate below {LITTLE_REPETITION}",
            "calibration": f"nodes whose parent was accepted, by confidence under it in {NUM_BINS} equal bins from 0",
            "positions": {name: list(path) for name, path in POSITIONS.items()},
            "identity": "answers against plain decoding, token by token; not under the rejection rule (verdicts null)",
        },
        "wall_s": round(wall_s, 1),
        "tasks": dict(tasks),
        "all": everything,
        "findings": findings(tasks, everything),
    }


if __name__ == "__main__":
    sys.exit(main())
