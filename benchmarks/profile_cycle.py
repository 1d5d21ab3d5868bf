"""Where the time of a cycle goes, by method and runtime, greedy and sampled.

    python benchmarks/profile_cycle.py -m smollm2 --dtype bf16 --threads 2 \
        --out benchmarks/records/profile-smollm2-bf16.json --figure docs/figures/profile-smollm2-bf16.svg

Passes are timed where the executor runs them, and a draft's LM head beside them; the other parts are those of the
engine's own clock (`slipstream/runtime/clock.py`). Prompts are the package's own, answered in turns by all methods and
runtimes; prefill and what is compiled beside an answer are left out. The figure needs matplotlib; `--from RECORD` draws
it again without measuring.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

import slipstream
from records import provenance, write_record
from slipstream.methods.hybrid import drafting_model
from slipstream.model import Model
from slipstream.prompts import load_prompts
from slipstream.runtime.executor import make_executor
from slipstream.target.target import Target

METHODS = ("plain", "prompt-lookup", "eagle2", "layer-skip", "auto")
RUNTIMES = ("eager", "packed", "compiled")
TEMPERATURES = (0, 1)
PARTS = {
    "draft_passes": "passes of the draft",
    "target_passes": "passes of the target",
    "drafting": "drafting, beside its passes",
    "choosing": "choosing tokens",
    "rest": "rest of the host's work",
}
"""As the record and the figure name them."""
PASSES = ("draft_passes", "target_passes")
WARM_UP_TOKENS = 8


def main() -> int:
    """Measure or read, print, write the record and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="smollm2")
    parser.add_argument("--dtype")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--from", dest="source", type=Path, help="read this record instead of measuring")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    record = json.loads(options.source.read_text()) if options.source else measured(options)
    for row in record["rows"]:
        print(line(row))
    if options.out is not None:
        write_record(record, options.out)
    if options.figure is not None:
        draw(record, options.figure)
    return 0


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """The record: a row for each runtime and method."""
    models = load_all(options.model, options.dtype)
    plain = models[RUNTIMES[0], "plain"]
    settings = {"prompts": options.prompts, "max_new_tokens": options.max_new_tokens, "temperatures": TEMPERATURES}
    record = provenance(plain.target, model=options.model, **settings)
    prompts = [plain.encode(one.turns[0]) for one in load_prompts()[: options.prompts]]
    for place, model in models.items():
        print(f"warming up {' '.join(place)}", file=sys.stderr)
        settled(model, prompts[0], WARM_UP_TOKENS, 0)
    sums = {(temperature, *place): Counter[str]() for temperature in TEMPERATURES for place in models}
    for number, prompt in enumerate(prompts, 1):
        for (temperature, *place), found in sums.items():
            found.update(settled(models[tuple(place)], prompt, options.max_new_tokens, temperature))
        print(f"{number} of {len(prompts)} prompts", file=sys.stderr)
    return record | {"rows": [row_of(*place, found) for place, found in sums.items()]}


def load_all(name: str, dtype: str | None) -> dict[tuple[str, str], Model]:
    """All methods in all runtimes, over one loaded model."""
    loaded = slipstream.load(name, "plain", dtype=dtype)
    targets = {runtime: Target(loaded.target.model, make_executor(runtime=runtime)) for runtime in RUNTIMES}
    plain = {runtime: Model(target, loaded.drafter, loaded.tokenizer, keep=0) for runtime, target in targets.items()}
    return {(runtime, method): plain[runtime].with_method(method) for method in METHODS for runtime in RUNTIMES}


def settled(model: Model, prompt: list[int], max_new_tokens: int, temperature: float) -> Counter[str]:
    """Seconds by part of one answer, and how many tokens and cycles it has, once all its passes are compiled."""
    return model.target.executor.settled(partial(profiled, model, prompt, max_new_tokens, temperature))


def profiled(model: Model, prompt: list[int], max_new_tokens: int, temperature: float) -> Counter[str]:
    """The same of an answer as it comes."""
    seams = Seams()
    with seams.watching(model):
        stats = model.generate(prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=1).stats
    seconds = {
        **seams.seconds,
        "drafting": stats.draft_s - seams.seconds["draft_passes"],
        "choosing": stats.sample_s,
        "rest": stats.build_s + stats.host_s + stats.verify_s - seams.seconds["target_passes"],
    }
    return Counter({**seconds, "tokens": stats.num_tokens, "cycles": stats.num_cycles})


class Seams:
    """Seconds within passes, of drafts and of the target, from the first cycle of a generation on."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PASSES, 0.0)
        self._is_drafting = self._has_begun = False

    @contextmanager
    def watching(self, model: Model) -> Iterator[None]:
        """Time the passes of a model's generations in here."""
        drafter, alone = model.drafter, drafting_model(model.drafter)
        watched = [(model.target.executor, "run", self._timing), (drafter, "start", self._starting)]
        if hasattr(alone, "score"):
            watched.append((alone, "score", self._timing))  # the LM head of a draft
        before = [(one, name, vars(one).get(name)) for one, name, _ in watched]
        for one, name, change in watched:
            setattr(one, name, change(getattr(one, name)))
        try:
            yield
        finally:
            for one, name, own in before:
                delattr(one, name) if own is None else setattr(one, name, own)

    def _timing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args)
            finally:
                part = "draft_passes" if self._is_drafting else "target_passes"
                self.seconds[part] += (time.perf_counter() - began) * self._has_begun

        return timed

    def _starting(self, start: Callable[..., Any]) -> Callable[..., Any]:
        def started(generation: Any) -> Any:
            drafting = start(generation)
            drafting.propose = self._proposing(drafting.propose)
            return drafting

        return started

    def _proposing(self, propose: Callable[[], Any]) -> Callable[[], Any]:
        def proposed() -> Any:
            self._has_begun = self._is_drafting = True
            try:
                return propose()
            finally:
                self._is_drafting = False

        return proposed


def row_of(temperature: float, runtime: str, method: str, found: Counter[str]) -> dict[str, Any]:
    """Milliseconds of a mean cycle by part, and the share of what is outside passes."""
    total = sum(found[part] for part in PARTS)
    outside = total - sum(found[part] for part in PASSES)
    return {
        "temperature": temperature,
        "runtime": runtime,
        "method": method,
        "cycles": found["cycles"],
        "tau": round(found["tokens"] / found["cycles"], 3),
        "cycle_ms": round(1e3 * total / found["cycles"], 2),
        "parts_ms": {part: round(1e3 * found[part] / found["cycles"], 3) for part in PARTS},
        "outside_passes": round(outside / total, 4),
    }


def line(row: dict[str, Any]) -> str:
    """A row for the eye."""
    parts = ", ".join(f"{name} {row['parts_ms'][part]:.2f}" for part, name in PARTS.items())
    return (
        f"T={row['temperature']} {row['runtime']:8} {row['method']:13} {row['cycle_ms']:6.2f} ms: {parts}; "
        f"{row['outside_passes']:.1%} outside"
    )


def draw(record: dict[str, Any], file: Path) -> None:
    """Stacked bars: a cycle of each method by runtime, greedy on the left and sampled on the right."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt
    from plotting import STYLE

    from slipstream.report.style import BLUE, GREEN, GREY, ORANGE, SKY

    colours = dict(zip(PARTS, (SKY, BLUE, ORANGE, GREEN, GREY), strict=True))
    places = {(runtime, method): -4 * i - j for i, method in enumerate(METHODS) for j, runtime in enumerate(RUNTIMES)}
    with mpl.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(9.6, 5.4), layout="constrained", sharey=True, sharex=True)
        sides = dict(zip(TEMPERATURES, panels, strict=True))
        for row in record["rows"]:
            left, place, axes = 0.0, places[row["runtime"], row["method"]], sides[row["temperature"]]
            for part, name in PARTS.items():
                width = row["parts_ms"][part]
                axes.barh(place, width, left=left, color=colours[part], label=name)
                left += width
            axes.text(left + 1, place, f"{row['outside_passes']:.0%} outside", va="center", fontsize=7)
        for temperature, axes in sides.items():
            axes.set_title(f"temperature {temperature}")
            axes.set_yticks(list(places.values()), [f"{method}, {runtime}" for runtime, method in places])
            axes.set_xlabel("milliseconds of a cycle")
            axes.set_xlim(right=1.25 * max(row["cycle_ms"] for row in record["rows"]))
            axes.grid(visible=False, axis="y")
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles[: len(PARTS)], names[: len(PARTS)], loc="outside upper center", ncols=3)
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
        plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
