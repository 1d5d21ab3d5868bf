r"""tau of EAGLE-2 and the time of a draft level by the size of the draft vocabulary.

    python benchmarks/draft_vocabulary.py --model smollm2 --dtype bfloat16 --vocabulary VOCABULARY.safetensors \
        --sizes 2048,4096,8192,16384 --out benchmarks/records/draft-vocabulary-smollm2.json

The vocabulary is what `slipstream heads vocabulary` counted. Every size drafts the same trees (60 nodes, depth 6) for
the same questions. tau: tokens a target pass, over all questions. A level: the LM head over 10 rows, the median of
interleaved rounds. No token differs: the answers are compared with those of the whole vocabulary.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

import slipstream
from records import TASKS, missing_task, provenance, read_questions, write_record
from slipstream.model import Model

TEMPERATURES = (0.0, 1.0)
TREE = {"width": 10, "depth": 6, "total": 60}
ROUNDS = 30


def main() -> int:
    """Measure, print, write the record."""
    options = parse_arguments()
    if missing := missing_task(options.data):
        print(f"skipped: {missing}.jsonl is not in {options.data}; give the files' folder with --data")
        return int(options.out is not None)
    models = {size: load(options, size) for size in ("all", *options.sizes)}
    whole = models["all"]
    prompts = [ids for task in TASKS for ids in questions(options, task, whole)]
    levels = level_seconds(models)
    rows = []
    for temperature in TEMPERATURES:
        answers = {}
        for size, model in models.items():
            outputs = [
                model.generate(ids, temperature=temperature, seed=1, max_new_tokens=options.max_new_tokens)
                for ids in prompts
            ]
            answers[size] = [output.token_ids for output in outputs]
            tokens = sum(len(output.token_ids) for output in outputs)
            tau = tokens / sum(output.stats.num_cycles for output in outputs)
            same = sum(one == other for one, other in zip(answers[size], answers["all"], strict=True))
            row = {
                "temperature": temperature,
                "tokens": size,
                "tau": tau,
                "same_answers": same,
                "answers": len(prompts),
            }
            rows.append({**row, "lm_head_s": levels[size]})
            print(f"T={temperature:g} {size!s:>6}: tau {tau:.3f}, LM head {1e3 * levels[size]:.2f} ms, same {same}")
    if options.out is not None:
        source = provenance(whole.target, model=options.model, prompts_per_task=options.prompts, seed=1)
        record = {"what": (__doc__ or "").splitlines()[0], "provenance": source, "tree": TREE, "rows": rows}
        write_record(record, options.out)
    return 0


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--draft", help="folder of the head; default: the one that ships for the model")
    parser.add_argument("--vocabulary", type=Path, required=True, help="file of `slipstream heads vocabulary`")
    parser.add_argument("--sizes", type=lambda text: [int(one) for one in text.split(",")], default=[4096, 8192, 16384])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/eval"), help="folder of the question files")
    parser.add_argument("--prompts", type=int, default=3, help="questions of each file, first turn only")
    parser.add_argument("--max-prompt-tokens", type=int, default=700, help="the last so many of a prompt")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, help="write the record here")
    return parser.parse_args()


def load(options: argparse.Namespace, size: int | str) -> Model:
    """The model with a head that drafts from so many tokens."""
    from slipstream.drafting.draft_vocabulary import load_vocabulary

    draft = {} if options.draft is None else {"draft": options.draft}
    model = slipstream.load(options.model, "eagle2", dtype=options.dtype, draft_vocabulary="all", **draft, **TREE)
    if size != "all":
        vocabulary = load_vocabulary(options.vocabulary, model.target).first(int(size))
        drafter = type(model.drafter)(model.target, model.drafter.head, model.drafter.shape, vocabulary)
        model = Model(model.target, drafter, model.tokenizer)
    return model


def questions(options: argparse.Namespace, task: str, model: Model) -> list[list[int]]:
    """Token ids of the first questions of a task."""
    found = read_questions(options.data, task, options.prompts)
    return [model.encode(one.turns[0])[-options.max_prompt_tokens :] for one in found]


@torch.inference_mode()
def level_seconds(models: dict[int | str, Model]) -> dict[int | str, float]:
    """Seconds of the LM head over the ten rows of a level, by size."""
    target = models["all"].target
    hidden = torch.randn(1, TREE["width"], target.config.hidden_size).to(target.device, target.dtype)
    times: dict[int | str, list[float]] = {size: [] for size in models}
    for _ in range(ROUNDS):
        for size, model in models.items():
            began = time.perf_counter()
            model.drafter.score(hidden)
            times[size].append(time.perf_counter() - began)
    return {size: statistics.median(seconds) for size, seconds in times.items()}


if __name__ == "__main__":
    raise SystemExit(main())
