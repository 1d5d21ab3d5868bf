r"""EAGLE heads of the demo target trained so many steps ahead: accuracy by depth, and tau with the same trees.

    python benchmarks/steps_ahead.py --corpus CORPUS --work runs/steps-ahead --threads 1 \
        --head 1 --head 3=src/slipstream/demo/eagle --out benchmarks/records/eagle-steps-ahead-demo.json

A head without a folder is trained in WORK by the shipped recipe (`slipstream.training.demo`: text, settings, target in
bfloat16) with that number of steps ahead; an interrupted run goes on. `--steps`, `--batch-size` and `--max-length`
make the recipe smaller, for all heads alike. Compare heads of one recipe only: else the difference is the recipe's.

All heads are calibrated anew, alike, in copies, on the dialogues that the recipe keeps back, and measured on these: the
head fed with its own features, the text's own tokens before. Then every head drafts the same trees for the same
questions, and every answer is compared with plain decoding. The intervals of differences come from drawing the
questions anew (bootstrap, paired). What they leave out is that another seed trains another head.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from draft_trees import LIKE_EAGLE, PUBLISHED, head_hash

from records import (
    TASKS,
    ExactModels,
    Methods,
    load_methods,
    missing_task,
    provenance,
    read_questions,
    task_names,
    write_record,
)
from slipstream.bench.comparison import VERDICTS, Answer, Comparison
from slipstream.methods.eagle.drafter import EagleDrafter
from slipstream.methods.eagle.settings import EagleSettings
from slipstream.methods.registry import build_drafter
from slipstream.target.loading import load_model
from slipstream.target.target import Target
from slipstream.training.calibration import calibrate_artefact
from slipstream.training.data import encoded
from slipstream.training.data.dialogues import Dialogue, usable_dialogues
from slipstream.training.data.draft_text import draft_text
from slipstream.training.demo import WEIGHTS, DemoSettings
from slipstream.training.runs import EagleRun

DEMO = Path(__file__).resolve().parents[1] / "src" / "slipstream" / "demo" / "target"
TREES: Methods = {"eagle2-60": ("eagle2", PUBLISHED), "eagle2-25": ("eagle2", LIKE_EAGLE), "eagle": ("eagle", {})}
TEMPERATURES = (0.0, 1.0)
NUM_DRAWS = 4000
ALSO_IN_CONFIG = ("confidence_scale", "calibration")  # beside the settings of a head without a log
Heads = Mapping[int, Path]
"""Folders by steps ahead."""


def main() -> int:
    """Train what is missing, measure, print, write the record. Exit 1 if an answer is wrong in float64 too."""
    options = parse_arguments()
    if missing := missing_task(options.data):
        print(f"skipped: {missing}.jsonl is not in {options.data}; give the files' folder with --data")
        return int(options.out is not None)
    if not options.corpus.exists():
        print(f"skipped: there is no {options.corpus}; give the training corpus with --corpus")
        return int(options.out is not None)
    if options.threads:
        torch.set_num_threads(options.threads)
    source = provenance(
        load_target(),
        model="demo",
        seed=options.seed,
        prompts_per_task=options.prompts,
        max_new_tokens=options.max_new_tokens,
    )
    text = usable_dialogues(recipe_text(options.corpus, options.work), options.max_length)
    heads: dict[int, Path] = {}
    measured = {}
    for ahead, folder in options.head:
        settings = settings_for(ahead, options)
        made = trained(settings, text, options.work) if folder is None else folder
        heads[ahead], measured[str(ahead)] = prepared(settings, made, text, options.work)
    answers = list(all_answers(options, heads))
    aheads = sorted(heads)
    found = rows(answers, aheads)
    record = {
        "what": __doc__.splitlines()[0] if __doc__ else "",
        "provenance": source,
        "dialogues": len(text),
        "heads": measured,
        "rows": found,
        "differences": differences(answers, aheads, random.Random(options.seed)),
    }
    print(table(record))
    if options.out is not None:
        write_record(record, options.out)
    return int(any(row["verdicts"]["fault"] for row in found))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head", type=head_argument, action="append", required=True, metavar="STEPS[=DIR]")
    recipe = DemoSettings().eagle
    for name in ("steps", "batch_size", "max_length"):
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=int, default=getattr(recipe, name), help="of training; default: the recipe's")
    parser.add_argument("--corpus", type=Path, default=Path("../shared/data/train"), help="of the demo models")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/steps-ahead"), help="for text, runs and copies of heads"
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data/eval"), help="folder of the question files")
    parser.add_argument("--tasks", type=task_names, default=list(TASKS), help="of the six, separated by commas")
    parser.add_argument("--prompts", type=int, default=10, help="questions of each file, first turn only")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--out", type=Path, help="write the record here")
    return parser.parse_args()


def head_argument(text: str) -> tuple[int, Path | None]:
    """`STEPS` or `STEPS=DIR`."""
    steps, equals, folder = text.partition("=")
    if not steps.isdigit() or int(steps) < 1 or (equals and not folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not STEPS or STEPS=DIR")
    return int(steps), Path(folder) if equals else None


# --- heads ----------------------------------------------------------------------------------------------------------


def load_target(dtype: str = "float32") -> Target:
    """The demo target, by default as it is used on CPUs."""
    return Target(load_model(DEMO, dtype=dtype, device="cpu", attention=None))


def recipe_text(corpus: Path, work: Path) -> list[Dialogue]:
    """What the shipped heads learned from."""
    how = DemoSettings()
    encoded_corpus = encoded.prepare(corpus, work / "target", how.target.vocab_size, how.target.context)
    return draft_text(load_target(), encoded_corpus, work / "text", how.text)


def settings_for(ahead: int, options: argparse.Namespace) -> EagleSettings:
    """Those of the shipped head but for the steps ahead and what the command line makes smaller."""
    return replace(
        DemoSettings().eagle,
        steps_ahead=ahead,
        steps=options.steps,
        batch_size=options.batch_size,
        max_length=options.max_length,
        report_every=max(1, options.steps // 5),
    )


def trained(settings: EagleSettings, text: Sequence[Dialogue], work: Path) -> Path:
    """The folder of the head with these settings."""
    out = work / f"run-{settings.steps_ahead}-{settings.steps}-{settings.batch_size}-{settings.max_length}"
    run = EagleRun(load_target("bfloat16"), text, out, settings)
    run.resume()
    for report in run.steps():
        if report.held_out:
            depths = " ".join(f"{one:.1%}" for one in report.held_out)
            print(f"{settings.steps_ahead} ahead, step {report.step}: {depths}", file=sys.stderr)
    return run.out


def prepared(settings: EagleSettings, made: Path, text: Sequence[Dialogue], work: Path) -> tuple[Path, dict[str, Any]]:
    """A calibrated copy of a head, and what the record says of it."""
    ahead = settings.steps_ahead
    folder = work / f"head-{ahead}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in WEIGHTS:
        shutil.copyfile(made / name, folder / name)
    made_with = json.loads((folder / "config.json").read_text(encoding="utf-8"))["slipstream"]
    if made_with["steps_ahead"] != ahead:
        raise SystemExit(f"the head in {made} was trained {made_with['steps_ahead']} steps ahead, not {ahead}")
    target = load_target()
    with tempfile.TemporaryDirectory() as unused:
        run = EagleRun(target, text, Path(unused), settings)
    drafter = build_drafter("eagle2", target, {"draft": folder})
    assert isinstance(drafter, EagleDrafter)
    run.head.load_state_dict(drafter.head.state_dict())
    accuracy = run.measure()
    found = calibrate_artefact("eagle2", target, folder, run.held_out)
    log = made / "training.json"
    run_log = json.loads(log.read_text(encoding="utf-8")) if log.is_file() else {"settings": made_with, "losses": []}
    return folder, {
        "weights": head_hash(drafter),
        "settings": {name: value for name, value in run_log["settings"].items() if name not in ALSO_IN_CONFIG},
        "held_out_top1_by_depth": [round(one, 4) for one in accuracy],
        "while_training": {str(one["step"]): [round(x, 4) for x in one["held_out"]] for one in run_log["losses"]},
        "confidence_scale": found.scale.to_dict(),
        "calibration": found.to_dict(),
    }


# --- drafts ---------------------------------------------------------------------------------------------------------


def all_answers(options: argparse.Namespace, heads: Heads) -> Iterable[Answer]:
    """Every tree of every head on every question; a question's answers come one after the other."""
    methods = {
        f"{tree} {ahead}": (method, {**how, "draft": str(folder)})
        for tree, (method, how) in TREES.items()
        for ahead, folder in heads.items()
    }
    comparison = Comparison(
        models=load_methods("demo", methods, device="cpu"),
        exact=ExactModels("demo", methods, device="cpu"),
        temperatures=TEMPERATURES,
        seed=options.seed,
        max_new_tokens=options.max_new_tokens,
    )
    for task in options.tasks:
        prompts = read_questions(options.data, task, options.prompts)
        comparison.warm_up(prompts[0])
        for number, prompt in enumerate(prompts):
            yield from comparison.answers(prompt, first=number)
            print(f"{task} {number + 1}/{len(prompts)}", file=sys.stderr)


def rows(answers: Sequence[Answer], aheads: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each temperature, tree and head: tau by task and in all, and what the comparison with plain says."""
    tasks = list(dict.fromkeys(one.prompt.kind for one in answers))

    def row(temperature: float, tree: str, ahead: int) -> dict[str, Any]:
        own = of(answers, temperature, tree, ahead)
        by_task = {task: tau([one for one in own if one.prompt.kind == task]) for task in tasks}
        return {
            "temperature": temperature,
            "tree": tree,
            "steps_ahead": ahead,
            "tau": {task: round(one, 4) for task, one in {**by_task, "all": tau(own)}.items()},
            "num_tokens": sum(one.output.stats.num_tokens for one in own),
            "num_cycles": sum(one.output.stats.num_cycles for one in own),
            "verdicts": {name: sum(one.verdict == name for one in own) for name in VERDICTS},
        }

    return [row(temperature, tree, ahead) for temperature in TEMPERATURES for tree in TREES for ahead in aheads]


def differences(answers: Sequence[Answer], aheads: Sequence[int], rng: random.Random) -> list[dict[str, Any]]:
    """Tau of the most steps ahead less that of the fewest, with an interval of 95 % over the choice of questions."""
    found = []
    for temperature in TEMPERATURES:
        for tree in TREES:
            fewest, most = (of(answers, temperature, tree, ahead) for ahead in (aheads[0], aheads[-1]))
            draws = (rng.choices(range(len(most)), k=len(most)) for _ in range(NUM_DRAWS))
            drawn = sorted(tau([most[i] for i in draw]) - tau([fewest[i] for i in draw]) for draw in draws)
            ends = [round(drawn[int(share * (NUM_DRAWS - 1))], 4) for share in (0.025, 0.975)]
            difference = round(tau(most) - tau(fewest), 4)
            found.append({"temperature": temperature, "tree": tree, "difference": difference, "interval": ends})
    return found


def of(answers: Iterable[Answer], temperature: float, tree: str, ahead: int) -> list[Answer]:
    """One head's answers with one tree, in the order of the questions."""
    return [one for one in answers if (one.method, one.temperature) == (f"{tree} {ahead}", temperature)]


def tau(answers: Sequence[Answer]) -> float:
    """Mean accept_length over the cycles of all answers."""
    stats = [one.output.stats for one in answers]
    return sum(one.num_tokens for one in stats) / max(1, sum(one.num_cycles for one in stats))


def table(record: Mapping[str, Any]) -> str:
    """Accuracies by depth, and tau by task with identical/rounding/fault."""
    lines = [
        f"{ahead} ahead: held-out top-1 by depth " + " ".join(f"{x:.1%}" for x in head["held_out_top1_by_depth"])
        for ahead, head in record["heads"].items()
    ]
    lines.append(f"{'T':>3} {'tree':10} {'ahead':>5}" + "".join(f"{name:>11}" for name in record["rows"][0]["tau"]))
    for row in record["rows"]:
        cells = "".join(f"{one:11.2f}" for one in row["tau"].values())
        verdicts = "/".join(str(row["verdicts"][name]) for name in VERDICTS)
        lines.append(f"{row['temperature']:3g} {row['tree']:10} {row['steps_ahead']:5d}{cells}   {verdicts}")
    for one in record["differences"]:
        low, high = one["interval"]
        name = f"T={one['temperature']:g} {one['tree']}"
        lines.append(f"{name}: {one['difference']:+.3f} by more steps ahead ({low:+.3f} to {high:+.3f})")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
