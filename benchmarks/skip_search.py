"""Searched skip sets against the default, uniform skipping, random search, another task's set and the adaptive set.

    python benchmarks/skip_search.py --threads 1 --data FOLDER --out skip-search.json

Sets are searched on questions 11 to 22 of each file and measured on the first ten, all methods side by side. Then sets
from all over the study are generated with, to see whether the modelled speed ranks them as the clock does.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import slipstream
from records import ExactModels, load_methods, provenance, read_questions, write_record
from slipstream.bench.comparison import PLAIN, Comparison, summarise
from slipstream.search.objectives import MeasuredSpeed, ModelledSpeed, answer
from slipstream.search.search import SkipSearch
from slipstream.search.settings import SearchSettings
from slipstream.search.space import uniform
from slipstream.skipping.skip_set import SkipSet

TASKS = {"summarisation": "cnn_dm", "code": "humaneval"}
SKIP_PROMPTS = 10  # questions that sets are measured on, and that no search sees
TOTAL = 12  # nodes of the tree that sets are measured with, which is the one they are searched for


def main() -> int:
    """Search, measure, print, write the record. Exit 1 if an answer differs from plain decoding in float64 too."""
    options = parse_arguments()
    if missing := [file for file in TASKS.values() if not (options.data / f"{file}.jsonl").is_file()]:
        print(f"skipped: {missing[0]}.jsonl is not in {options.data}; give the files' folder with --data")
        return int(options.out is not None)
    if options.threads:
        torch.set_num_threads(options.threads)
    began = time.perf_counter()
    model = slipstream.load(options.model, PLAIN, dtype=options.dtype, device=options.device)
    given = ("trials", "timed_trials", "search_prompts", "test_prompts", "max_new_tokens", "ranked", "seed")
    source = provenance(model.target, model=options.model, **{name: getattr(options, name) for name in given})
    with tempfile.TemporaryDirectory() as folder:
        tasks = {task: Task(task, model, options, Path(folder)) for task in TASKS}
        searches = {name: task.search_all() for name, task in tasks.items()}
        record: dict[str, Any] = {
            "what": __doc__.splitlines()[0] if __doc__ else "",
            "provenance": source,
            "searches": {name: {how: one.report for how, one in found.items()} for name, found in searches.items()},
            "measured": {name: task.measure(searches) for name, task in tasks.items()},
            "ranking": {name: task.rank(searches[name]["modelled"]) for name, task in tasks.items()},
        }
    record["wall_s"] = round(time.perf_counter() - began, 1)
    print_summary(record)
    if options.out is not None:
        write_record(record, options.out)
    return int(any(row["verdicts"]["fault"] for rows in record["measured"].values() for row in rows))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/eval"), help="folder of the question files")
    parser.add_argument("-m", "--model", default="tiny")
    parser.add_argument("--dtype")
    parser.add_argument("--device")
    parser.add_argument("--trials", type=int, default=150, help="of the modelled searches, random ones included")
    parser.add_argument("--timed-trials", type=int, default=60, help="of the throughput search")
    parser.add_argument("--timed-prompts", type=int, default=4, help="prompts of the throughput search")
    parser.add_argument("--timed-tokens", type=int, default=32, help="tokens of each (published: 8 prompts, 32 tokens)")
    parser.add_argument("--search-prompts", type=int, default=12)
    parser.add_argument("--test-prompts", type=int, default=SKIP_PROMPTS)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--ranked", type=int, default=32, help="sets whose modelled and measured ranks are compared")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each ranked set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--out", type=Path, help="write the record here")
    return parser.parse_args()


class Search:
    """A search that has ended."""

    def __init__(self, found: SkipSearch, report: dict[str, Any], best: SkipSet) -> None:
        self.found, self.report, self.best = found, report, best


class Task:
    """One task: its searches and its measurements."""

    def __init__(self, name: str, model: slipstream.Model, options: argparse.Namespace, folder: Path) -> None:
        self.name, self.model, self.options, self.folder = name, model, options, folder
        questions = read_questions(options.data, TASKS[name], SKIP_PROMPTS + options.search_prompts)
        self.test = questions[: min(options.test_prompts, SKIP_PROMPTS)]
        self.prompts = [[{"role": "user", "content": one.turns[0]}] for one in questions[SKIP_PROMPTS:]]
        self.settings = SearchSettings(
            num_prompts=options.search_prompts,
            max_new_tokens=options.max_new_tokens,
            trials=options.trials,
            seed=options.seed,
        )

    def search_all(self) -> dict[str, Search]:
        """By each objective, and at random with as many passes as the modelled search made, its singles included."""
        searches = {"modelled": self._search("modelled", self.settings)}
        budget = self.options.trials + len(searches["modelled"].found.space.names) + 1
        at_random = replace(self.settings, sampler="random", starting_points=False, trials=budget)
        gp = replace(self.settings, sampler="gp")
        timed = replace(
            self.settings,
            objective="throughput",
            trials=self.options.timed_trials,
            num_prompts=self.options.timed_prompts,
            max_new_tokens=self.options.timed_tokens,
        )
        searches["modelled, gp"] = self._search("gp", gp)
        searches["random"] = self._search("random", at_random)
        searches["throughput"] = self._search("throughput", timed)
        return searches

    def _search(self, name: str, settings: SearchSettings) -> Search:
        began = time.perf_counter()
        found = SkipSearch(self.model, self.prompts, settings, self.folder / f"{self.name}.{name}", task=self.name)
        if name in ("gp", "random"):  # by the first search's ruler: its answers, costs and singles
            first = SkipSearch(
                self.model, self.prompts, self.settings, self.folder / f"{self.name}.modelled", task=self.name
            )
            for key in ("measured", "harm"):
                found.study.remember(key, first.study.recall(key))
        found.prepare()
        prepared = time.perf_counter()
        trials = list(found.trials())
        ended = time.perf_counter()
        best = found.best()
        top = max(trials, key=lambda trial: trial.value)
        report = {
            "prepare_s": round(prepared - began, 1),
            "trials_s": round(ended - prepared, 1),
            "trials": len(trials),
            "median_trial_s": round(statistics.median(trial.seconds for trial in trials), 3),
            "best_trial": top.number,
            "best": best.provenance["figures"],
            "starting_points": best.provenance["starting_points"],
            "best_so_far": [round(trial.best, 1) for trial in trials[9::10]],
            "attention": list(best.attention),
            "mlp": list(best.mlp),
            "costs": best.provenance["costs"],
        }
        print(
            f"{self.name} {name}: {len(trials)} trials in {ended - began:.0f} s, best {top.value:.1f}", file=sys.stderr
        )
        return Search(found, report, best)

    def measure(self, searches: Mapping[str, Mapping[str, Search]]) -> list[dict[str, Any]]:
        """Every set on the questions that no search saw: tau, modelled and measured speed."""
        own, base = searches[self.name], searches[self.name]["modelled"].found
        built_in = SkipSet.default(base.sublayers.num_layers, base.sublayers.attention_bytes, base.sublayers.mlp_bytes)
        sets: dict[str, SkipSet] = {
            "default rule": built_in,
            "uniform 1/2": uniform(base.space, 2),
            **{f"searched ({how})": one.best for how, one in own.items()},
            **{f"of {other}": found["modelled"].best for other, found in searches.items() if other != self.name},
        }
        figures = self._modelled_figures(base, sets)
        methods: dict[str, tuple[str, dict[str, Any]]] = {
            name: ("layer-skip", {"skip_set": skip_set, "total": TOTAL}) for name, skip_set in sets.items()
        }
        methods["adaptive"] = ("layer-skip", {"skip_set": "adaptive", "total": TOTAL})
        models = load_methods(self.options.model, methods, dtype=self.options.dtype, device=self.options.device)
        comparison = Comparison(
            models=models,
            exact=ExactModels(self.options.model, methods, device=self.options.device),
            temperatures=(0.0,),
            seed=self.options.seed,
            max_new_tokens=self.options.max_new_tokens,
        )
        comparison.warm_up(self.test[0])
        answers = [one for n, prompt in enumerate(self.test) for one in comparison.answers(prompt, first=n)]
        rows = [totals.to_dict() for totals in summarise(answers)]
        plain = decode_rate(next(row for row in rows if row["method"] == PLAIN))
        return [
            {
                "method": row["method"],
                "tau": round(row["tau"], 4),
                "tokens_per_second": round(decode_rate(row), 2),
                "speedup": round(decode_rate(row) / plain, 4),
                "modelled": figures.get(row["method"]),
                "verdicts": row["verdicts"],
                "accept_lengths": row["accept_lengths"],
            }
            for row in rows
        ]

    def _modelled_figures(self, base: SkipSearch, sets: Mapping[str, SkipSet]) -> dict[str, dict[str, float]]:
        prompts = [[{"role": "user", "content": one.turns[0]}] for one in self.test]
        samples, _ = answer(base.model, prompts, self.settings)
        modelled = ModelledSpeed(base.target, base.sublayers, samples, base.costs, self.settings)
        return {name: modelled(skip_set).figures for name, skip_set in sets.items()}

    def rank(self, search: Search) -> dict[str, Any]:
        """Sets from the whole range of the study: modelled against measured speed and tau, on the same prompts."""
        found, count = search.found, self.options.ranked
        values = found.study.values()
        ordered = sorted(values, key=values.__getitem__)
        places = [round(i * (len(ordered) - 1) / (count - 1)) for i in range(count)]
        sets = [found.space.skip_set(ordered[place], found.target.hash) for place in sorted(set(places))]
        samples = found.samples[: self.options.timed_prompts]
        modelled = ModelledSpeed(found.target, found.sublayers, samples, found.costs, self.settings)
        measured = MeasuredSpeed(found.target, found.sublayers, samples, found.costs, self.settings)
        rounds = [[measured(skip_set) for skip_set in sets] for _ in range(self.options.rounds)]
        rates = [statistics.median(one.value for one in tried) for tried in zip(*rounds, strict=True)]
        figures = [modelled(skip_set).figures for skip_set in sets]
        whole = [values[found.space.bits(skip_set)] for skip_set in sets]
        once, again = ([one.value for one in tried] for tried in (rounds[0], rounds[-1]))
        return {
            "sets": len(sets),
            "prompts": len(samples),
            "rounds": len(rounds),
            "spearman": round(spearman([one["tokens_per_second"] for one in figures], rates), 4),
            "spearman_of_whole_study": round(spearman(whole, rates), 4),
            "spearman_of_the_clock_with_itself": round(spearman(once, again), 4),
            "tau_mean_absolute_difference": round(
                statistics.fmean(abs(a["tau"] - b.figures["tau"]) for a, b in zip(figures, rounds[0], strict=True)), 4
            ),
            "points": [
                {
                    "modelled": a["tokens_per_second"],
                    "measured": round(rate, 2),
                    "modelled_tau": a["tau"],
                    "tau": b.figures["tau"],
                }
                for a, rate, b in zip(figures, rates, rounds[0], strict=True)
            ],
        }


def decode_rate(row: Mapping[str, Any]) -> float:
    """Tokens per second without the time of prompts, which no set changes."""
    return float(row["num_tokens"] / row["cycles_s"])


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation; tied values share their mean rank."""
    return statistics.correlation(_ranks(a), _ranks(b))


def _ranks(values: Sequence[float]) -> list[float]:
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2 for value in values
    ]


def print_summary(record: Mapping[str, Any]) -> None:
    """The measured tables, and how the rankings agree."""
    for task, rows in record["measured"].items():
        print(f"{task:24}{'tau':>8}{'tokens/s':>10}{'speedup':>9}{'modelled':>10}  identical/rounding/fault")
        for row in rows:
            modelled = f"{row['modelled']['speedup']:9.2f}x" if row["modelled"] else " " * 10
            verdicts = "/".join(str(count) for count in row["verdicts"].values())
            print(
                f"  {row['method']:22}{row['tau']:8.2f}{row['tokens_per_second']:10.1f}{row['speedup']:8.2f}x{modelled}"
                f"  {verdicts}"
            )
        ranking = record["ranking"][task]
        print(f"  rank correlation over {ranking['sets']} sets: {ranking['spearman']}\n")


if __name__ == "__main__":
    sys.exit(main())
