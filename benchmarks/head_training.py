r"""Heads of several recipes, trained with the same processor time or on as many tokens, on the same held-out answers.

    python benchmarks/head_training.py -m smollm2 --dtype bf16 --method eagle --steps-ahead 3 --data answers.jsonl \
        --held-out held.jsonl --processor-seconds 1800 --run runs/eagle --name "eagle, 3 steps" --out record.json

Each call trains one head in a folder of its own, and puts its curve into the record, beside those that are there.
The held-out file holds answers of the target's own (`slipstream train answers`), none of which is trained on. The rate
rises over ten steps, stays, and falls to zero over the last 65 % of the budget. Measuring costs none of it; the
target's passes over text that is new do.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from records import provenance, write_record
from slipstream.cli.training_data import load_target, read_dialogues
from slipstream.methods.eagle.settings import EagleSettings
from slipstream.methods.eagle3.settings import Eagle3Settings
from slipstream.target.target import Target
from slipstream.training.data.dialogues import Dialogue
from slipstream.training.data.features import FeatureSource
from slipstream.training.run import HeadRun, Report
from slipstream.training.runs import Eagle3Run, EagleRun

WARM_UP = 10
FALLING = 0.65
"""Share of the budget in which the rate falls."""


def main() -> int:
    """Train one head, and write its curve."""
    options = parsed()
    torch.set_num_threads(options.threads)
    target, tokenizer = load_target(options.model, options.dtype, None)
    texts = read_dialogues(
        target, tokenizer, options.data, options.run, answers="data", how={}, limit=None, max_length=768
    )
    held_out = read_dialogues(
        target, tokenizer, [options.held_out], options.run, answers="data", how={}, limit=None, max_length=768
    )
    made = provenance(target, model=options.model)
    run = begun(target, texts[: options.limit], held_out, options)
    curve = Budget(run, options).train()
    arm = {
        "name": options.name,
        "method": options.method,
        "steps_ahead": options.steps_ahead,
        "optimizer": options.optimizer,
        "learning_rate": options.learning_rate,
        "begins_with": options.initial or "fresh weights",
        "curve": curve,
        "provenance": made,
    }
    record = json.loads(options.out.read_text()) if options.out.exists() else {"what": (__doc__ or "").splitlines()[0]}
    arms = [one for one in record.get("arms", []) if one["name"] != options.name]
    write_record({**record, "arms": [*arms, arm]}, options.out)
    return 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="smollm2")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--method", choices=("eagle", "eagle3"), default="eagle")
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="dialogues trained on, the first ones")
    parser.add_argument("--steps-ahead", type=int, default=3)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="muon")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--from", dest="initial", help="a head to begin with; default: fresh weights")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--processor-seconds", type=float)
    budget.add_argument("--tokens", type=float)
    parser.add_argument("--measure-every", type=int, default=40, help="steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--run", type=Path, required=True, help="folder of the head")
    parser.add_argument("--name", required=True, help="of its curve in the record")
    parser.add_argument("--out", type=Path, required=True, help="the record")
    return parser.parse_args()


def begun(target: Target, texts: list[Dialogue], held_out: list[Dialogue], options: argparse.Namespace) -> HeadRun:
    """A run that has not taken a step, measured on the held-out answers."""
    common: dict[str, Any] = {
        "steps": 1_000_000,  # the budget ends it
        "batch_size": None,
        "tokens_per_step": 2048,
        "max_length": 768,
        "cache_gib": 8,
        "held_out": 1,
        "report_every": options.measure_every,
        "learning_rate": options.learning_rate,
        "optimizer": options.optimizer,
        "steps_ahead": options.steps_ahead,
        "initial_head": options.initial,
    }
    run: HeadRun
    if options.method == "eagle":
        settings = EagleSettings(**common, loss_vocabulary=8192, fc_bias=False)
        run = EagleRun(target, texts, options.run, settings)
    else:
        wanted = Eagle3Settings(**common, draft_vocabulary=4096, storage="bf16")
        run = Eagle3Run(target, texts, options.run, wanted)
    run.held_out = held_out
    run._held_out_features = FeatureSource(target, held_out, None, 0, run.recipe.features)
    return run


class Budget:
    """Trains until so much processor time, or so many tokens, are used up."""

    def __init__(self, run: HeadRun, options: argparse.Namespace) -> None:
        self._run, self._seconds, self._tokens = run, options.processor_seconds, options.tokens
        self._peak, self._used, self._last = options.learning_rate, 0.0, 0.0
        run._learning_rate = self._rate  # type: ignore[method-assign]
        run._score = self._uncounted(run._score)  # type: ignore[method-assign]

    def train(self) -> list[dict[str, Any]]:
        """The curve: what was measured, and what it had cost."""
        curve = []
        self._last = time.process_time()
        for report in self._run.steps():
            self._charge()
            if report.held_out:
                curve.append(self._entry(report))
                print(json.dumps(curve[-1]), flush=True)
            if self._share() >= 1:
                self._run.stop()
        score = self._run._score()
        if score is None or score.paths is None:
            raise SystemExit("the held-out file holds no answers; give some")
        curve.append(
            {
                "step": self._run.step,
                "tokens": self._run.num_tokens,
                "processor_s": round(self._used),
                "held_out_top1": (score.num_correct / score.num_rows.clamp(min=1)).tolist(),
                "tau": score.paths.tau(),
            }
        )
        return curve

    def _entry(self, report: Report) -> dict[str, Any]:
        return {
            "step": report.step,
            "tokens": report.num_tokens,
            "processor_s": round(self._used),
            "held_out_top1": list(report.held_out),
            "tau": report.tau,
        }

    def _charge(self) -> None:
        now = time.process_time()
        self._used, self._last = self._used + now - self._last, now

    def _share(self) -> float:
        """Of the budget, used."""
        return float(self._used / self._seconds if self._seconds else self._run.num_tokens / self._tokens)

    def _rate(self) -> float:
        return float(self._peak * max(0.0, min(1.0, (self._run.step + 1) / WARM_UP, (1 - self._share()) / FALLING)))

    def _uncounted(self, score: Callable[[], Any]) -> Callable[[], Any]:
        def measured() -> Any:
            began = time.process_time()
            found = score()
            self._last += time.process_time() - began
            return found

        return measured


if __name__ == "__main__":
    raise SystemExit(main())
