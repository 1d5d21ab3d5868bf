"""A small search over a tiny target, for tests and for the processes that they start.

python search_doubles.py STUDY TRIALS    runs it, printing the bits of each trial
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from families import build
from slipstream.drafting.shape import Dynamic
from slipstream.methods.plain import PlainDrafter
from slipstream.model import Model
from slipstream.search.search import SkipSearch
from slipstream.search.settings import SearchSettings
from slipstream.target.target import Target

PROMPTS: list[Any] = [[{"role": "user", "content": text}] for text in ("one", "two")]
ALL_LAYERS = {"keep_first": 0, "keep_last": 0}  # 4096 sets: more than a test can try
SIZES = {"num_hidden_layers": 6, "weight_std": 0.3}


class Tokenizer:
    """Text to token ids by its letters; no chat template."""

    chat_template = None

    def encode(self, text: str) -> list[int]:
        return [2 + ord(letter) % 60 for letter in text]

    def decode(self, ids: list[int], **_: object) -> str:
        return "".join(chr(97 + one % 26) for one in ids)


def tiny_model(**settings: Any) -> Model:
    return Model(Target(build("llama", **{**SIZES, **settings})), PlainDrafter(), Tokenizer())


def small_search(study: Path, trials: int, model: Model | None = None, **settings: Any) -> SkipSearch:
    options = {"max_new_tokens": 6, "rows": 64, "shape": Dynamic(width=2, depth=2, total=3), "sampler": "random"}
    warm_start = settings.pop("warm_start", None)
    task = settings.pop("task", "code")
    chosen = SearchSettings(**{**options, "trials": trials, **settings})
    found = SkipSearch(model or tiny_model(), PROMPTS, chosen, study, task=task, warm_start=warm_start)
    found.prepare()
    return found


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    for trial in small_search(Path(sys.argv[1]), int(sys.argv[2]), **ALL_LAYERS).trials():
        print(trial.skip_set.attention, trial.skip_set.mlp, flush=True)
