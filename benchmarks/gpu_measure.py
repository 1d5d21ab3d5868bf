"""What a GPU is to be asked of a large target: identity, passes against the bandwidth, methods, transformers' own.

The target is a small model that `expanded.py` made large, so that tau and cost are both real. `gpu.py measure` starts
this script, under a watch. All that is found stands in `OUT/gpu.json`, and the record of each benchmark beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from expanded import LLAMA_8B, Shape, expand, expand_head, expand_skip_set, zero_share
from gpu_options import RECORD, SHARES, add_options, step_names
from timed_steps import Journal, Step, work
from torch import Tensor

import slipstream
from slipstream.bench.comparison import first_difference
from slipstream.bench.entrants import ExactEntrants, load_entrants
from slipstream.bench.record import write_record
from slipstream.bench.runner import BenchRun, Progress, Watcher
from slipstream.bench.settings import PLAIN, BenchSettings, EntrantSpec
from slipstream.bench.tasks import load_tasks, questions_hash
from slipstream.certify.identity import compare
from slipstream.drafting.draft_vocabulary import VOCABULARY_FILE
from slipstream.errors import InputError
from slipstream.methods.eagle.checkpoint import load_head, save_head
from slipstream.methods.registry import packaged_artefact
from slipstream.prompts import Prompt, load_prompts
from slipstream.records.machine import commit, hardware, shown_command, versions
from slipstream.records.run_files import RECORD_FILE
from slipstream.records.schema import ALL, Record
from slipstream.runtime.timing import Passes, medians, rounds_of
from slipstream.skipping.resolve import resolve_skip_set
from slipstream.skipping.sublayers import SubLayers

ROOT = Path(__file__).resolve().parents[1]
RUNTIMES = ("captured", "eager")
"""How passes are run, the better first; one that `load` refuses is recorded as refused."""
TEMPERATURES = (0.0, 1.0)
TREE = {"width": 10, "depth": 6, "total": 60}
"""EAGLE-2's, as published."""
HEAD = "eagle"
"""Folder of the expanded head."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is measured, and how much of it."""

    model: str
    """The small model, for which an EAGLE head ships."""
    shape: Shape
    dtype: str
    prompts_per_task: int
    num_tokens: int
    """Of an answer."""
    num_compared: int
    """Prompts whose answers are compared for identity, if there is time."""
    rows: tuple[int, ...]
    """Of the passes that are timed."""
    context: int
    """Cached tokens before them."""
    copied_mib: int
    """What the device copies to show its bandwidth."""


SIZES: dict[str, Size] = {
    "8b": Size(
        model="smollm2",
        shape=LLAMA_8B,
        dtype="bf16",
        prompts_per_task=4,
        num_tokens=64,
        num_compared=4,
        rows=(1, 2, 4, 8, 16, 32, 61),
        context=500,
        copied_mib=4096,
    ),
    "small": Size(
        model="tiny",
        shape=Shape(hidden=288, layers=15, heads=6, kv_heads=3, head_dim=128, mlp=704),
        dtype="fp32",
        prompts_per_task=1,
        num_tokens=4,
        num_compared=1,
        rows=(1, 8),
        context=64,
        copied_mib=32,
    ),
}


class Subjects:
    """The small model and the large one that computes the same, each made when it is first asked for."""

    def __init__(self, size: Size, device: str) -> None:
        self.size, self.device = size, device
        self._small: dict[str, slipstream.Model] = {}
        self._large: dict[str, slipstream.Model] = {}
        self._models: dict[tuple[str, str], slipstream.Model] = {}

    def small(self, dtype: str) -> slipstream.Model:
        """With plain decoding."""
        if dtype not in self._small:
            self._small[dtype] = slipstream.load(self.size.model, PLAIN, dtype=dtype, device=self.device)
        return self._small[dtype]

    @property
    def _source(self) -> slipstream.Model:
        """What the large one is made of."""
        return self.small("fp32")

    def large(self, dtype: str) -> slipstream.Model:
        """With plain decoding and eager passes."""
        if dtype not in self._large:
            numbers = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
            model = expand(self._source.target.model, self.size.shape, numbers)
            self._large[dtype] = self.loaded(model, "eager")
        return self._large[dtype]

    def loaded(self, model: Any, runtime: str) -> slipstream.Model:
        """The large model, whose passes are run so. Raises InputError where they cannot be."""
        return slipstream.load(model, PLAIN, tokenizer=self._source.tokenizer, runtime=runtime)

    def run_by(self, runtime: str) -> slipstream.Model:
        """The large model in the dtype that is measured."""
        return self.loaded(self.large(self.size.dtype).target.model, runtime)

    def run_by_first(self, runtimes: tuple[str, ...]) -> tuple[slipstream.Model | None, dict[str, str]]:
        """The same by the first of these that is not refused, and why others were; None: all were."""
        refused = {}
        for runtime in runtimes:
            try:
                return self.run_by(runtime), refused
            except InputError as error:
                refused[runtime] = str(error)
        return None, refused

    @cached_property
    def specs(self) -> dict[str, EntrantSpec]:
        """Our methods on the large model, by name."""
        skip_set = self._skip_set()
        options: dict[str, tuple[str, dict[str, Any]]] = {
            PLAIN: (PLAIN, {}),
            "eagle2": ("eagle2", {"draft": HEAD}),
            "eagle2-60": ("eagle2", {"draft": HEAD, **TREE}),
            "layer-skip": ("layer-skip", {"skip_set": skip_set}),
            "prompt-lookup": ("prompt-lookup", {}),
            "auto": ("auto", {"draft": HEAD}),
        }
        self._save_head()
        return {
            name: EntrantSpec(name=name, kind="ours", method=method, options=own)
            for name, (method, own) in options.items()
        }

    def _skip_set(self) -> dict[str, list[int]]:
        """The small model's own."""
        target = self._source.target
        own = resolve_skip_set(None, SubLayers.find(target.model), target.hash)
        return expand_skip_set(own, self.size.shape)

    def _save_head(self) -> None:
        """Write the expanded head into the working folder."""
        source = self._source.target
        shipped = packaged_artefact("eagle2", source.hash)
        assert shipped is not None
        large = self.large(self.size.dtype)
        head = expand_head(load_head(shipped, source), self.size.shape, large.target.dtype)
        save_head(head, Path(HEAD), large.target)
        if head.vocabulary is not None:
            head.vocabulary.save(Path(HEAD) / VOCABULARY_FILE)

    def model(self, dtype: str, name: str) -> slipstream.Model:
        """The large model with one of our methods and eager passes."""
        if (dtype, name) not in self._models:
            spec = self.specs[name]
            self._models[dtype, name] = self.large(dtype).with_method(spec.method, **spec.options)
        return self._models[dtype, name]


# -- steps ---------------------------------------------------------------------------------------------------------


def build(subjects: Subjects) -> Step:
    """Make the large model and its head."""

    def step(seconds: float) -> Iterator[Mapping[str, Any]]:
        began = time.perf_counter()
        target = subjects.large(subjects.size.dtype).target
        yield {
            "model": f"{subjects.size.model}, expanded",
            "target": target.hash,
            "dtype": str(target.dtype).removeprefix("torch."),
            "shape": asdict(subjects.size.shape),
            "num_parameters": target.model.num_parameters(),
            "zero_share": round(zero_share(target.model), 4),
            "methods": {name: dict(one.options) for name, one in subjects.specs.items()},
            "build_s": round(time.perf_counter() - began, 1),
        }

    return step


def tests() -> Step:
    """Run the tests marked `gpu`. Their exit code is null where they take too long."""

    def step(seconds: float) -> Iterator[Mapping[str, Any]]:
        marked = [file for file in sorted(ROOT.glob("tests/**/test_*.py")) if "mark.gpu" in file.read_text("utf-8")]
        names = [str(file.relative_to(ROOT)) for file in marked]
        command = ["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", *names]
        try:
            done = subprocess.run([sys.executable, *command[1:]], cwd=ROOT, capture_output=True, timeout=seconds)
            code, output = done.returncode, done.stdout
        except subprocess.TimeoutExpired as late:
            code, output = None, late.stdout or b""
        said = output.decode(errors="replace").splitlines()[-12:]
        yield {"command": " ".join(command), "exit": code, "said": said}

    return step


def identity(subjects: Subjects) -> Step:
    """Compare the large model with the small one, and every method with plain decoding, prompt by prompt."""

    def step(seconds: float) -> Iterator[Mapping[str, Any]]:
        found: dict[str, Any] = {"expanded": {}, "head": {}, "float32": {}, "same_shape": {}}
        for prompt in load_prompts()[: subjects.size.num_compared]:
            for part, name, figures in _comparisons(subjects, prompt):
                _count(found[part].setdefault(name, {}), figures)
                yield found

    return step


def _comparisons(subjects: Subjects, prompt: Prompt) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """All that is asked of one prompt: part of the record, name in it, figures."""
    size = subjects.size
    names = [name for name in subjects.specs if name != PLAIN]
    for dtype in dict.fromkeys(("fp32", size.dtype)):
        yield "expanded", dtype, _compare_pair(subjects.small(dtype), subjects.large(dtype), prompt, size.num_tokens)
    yield "head", "eagle2-60", _compare_drafts(subjects, prompt, size.num_tokens)
    for temperature in TEMPERATURES:
        expected = _answer(subjects.large("fp32"), prompt, size.num_tokens, temperature)
        for name in names:
            ours = _answer(subjects.model("fp32", name), prompt, size.num_tokens, temperature)
            yield "float32", f"{name}, T={temperature:g}", _agreement(ours.token_ids, expected.token_ids)
    for name in names:
        yield "same_shape", name, _compare_shapes(subjects.model(size.dtype, name), prompt, size.num_tokens)


def _count(row: dict[str, Any], found: Mapping[str, Any]) -> None:
    """Add one answer's figures: counts are added, of distances the largest is kept."""
    for name, value in found.items():
        row[name] = max(row.get(name, 0.0), value) if isinstance(value, float) else row.get(name, 0) + int(value)


def _answer(model: slipstream.Model, prompt: Prompt, num_tokens: int, temperature: float = 0.0) -> slipstream.Output:
    """To its first turn, from the whole distribution, sampled answers with one seed."""
    return model.generate(prompt.turns[0], max_new_tokens=num_tokens, temperature=temperature, top_k=0, top_p=1, seed=0)


def _agreement(ours: list[int], reference: list[int]) -> dict[str, Any]:
    place = first_difference(ours, reference)
    return {
        "num_answers": 1,
        "num_identical": place is None,
        "num_tokens": len(reference),
        "num_tokens_before_difference": len(reference) if place is None else place,
    }


def _compare_pair(small: slipstream.Model, large: slipstream.Model, prompt: Prompt, num_tokens: int) -> dict[str, Any]:
    """Greedy answers of both, and their logits over the small one's text, read in one pass."""
    reference = _answer(small, prompt, num_tokens)
    text = [*reference.prompt_ids, *reference.token_ids]
    logits, others = (_logits(model, text) for model in (small, large))  # [tokens, vocab]
    return {
        **_agreement(_answer(large, prompt, num_tokens).token_ids, reference.token_ids),
        "logit_distance": round(float((logits - others).abs().max()), 7),
        "num_positions": len(text),
        "num_same_choice": int((logits.argmax(-1) == others.argmax(-1)).sum()),
    }


def _compare_drafts(subjects: Subjects, prompt: Prompt, num_tokens: int) -> dict[str, Any]:
    """Trees of one size on both models, each with its head, in float32: what was accepted of them."""
    models = (subjects.small("fp32").with_method("eagle2", **TREE), subjects.model("fp32", "eagle2-60"))
    small, large = (_answer(model, prompt, num_tokens).stats for model in models)
    return {
        "num_answers": 1,
        "num_same_lengths": small.accept_lengths == large.accept_lengths,
        "num_tokens": small.num_tokens,
        "num_cycles_small": small.num_cycles,
        "num_cycles_large": large.num_cycles,
    }


@torch.inference_mode()
def _logits(model: slipstream.Model, text: list[int]) -> Tensor:
    ids = torch.tensor([text], device=model.target.device)
    logits: Tensor = model.target.model(ids).logits[0].float()  # [tokens, vocab]
    return logits


def _compare_shapes(model: slipstream.Model, prompt: Prompt, num_tokens: int) -> dict[str, Any]:
    """A greedy answer beside plain decoding in passes of the same shape, one row a pass, and transformers' own."""
    request, _ = model.prepare(prompt.turns[0], max_new_tokens=num_tokens, temperature=0.0)
    found = compare(model.target, model.drafter, request, prefill_chunk=model.engine.prefill_chunk)
    same = {f"identical to {name}": one.divergence is None for name, one in found.references.items()}
    return {
        "num_answers": 1,
        "num_tokens": len(found.answer.token_ids),
        **same,
        "num_states_differing": found.num_states_differing,
    }


def passes(subjects: Subjects) -> Step:
    """Time passes of the target beside what reading its weights takes."""

    def step(seconds: float) -> Iterator[Mapping[str, Any]]:
        target = subjects.large(subjects.size.dtype).target
        bandwidth = copy_bandwidth(target.device, subjects.size.copied_mib << 20)
        read = weight_bytes(target.model)
        found: dict[str, Any] = {
            "copy_gb_per_s": round(bandwidth / 1e9, 1),
            "weight_bytes": read,
            "floor_ms": round(1e3 * read / bandwidth, 4),
            "context": subjects.size.context,
            "runtimes": {},
        }
        yield found
        for runtime in RUNTIMES:
            model, refused = subjects.run_by_first((runtime,))
            found["runtimes"][runtime] = (
                {"refused": refused[runtime]}
                if model is None
                else _pass_times(model, subjects.size, read / bandwidth, seconds / 4)
            )
            yield found

    return step


def copy_bandwidth(device: torch.device, num_bytes: int) -> float:
    """Bytes a second that the device reads and writes while it copies: both are counted."""
    source = torch.randint(0, 255, (num_bytes,), dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    times = rounds_of([lambda: copy.copy_(source)], device, budget_s=2.0, most=20)
    return 2 * num_bytes / medians(times)[0]


def weight_bytes(model: Any) -> int:
    """Bytes of the weights that a pass over one row reads: all but the embeddings, of which it reads a row."""
    embeddings = model.get_input_embeddings().weight
    return sum(one.numel() * one.element_size() for one in model.parameters() if one is not embeddings)


def _pass_times(model: slipstream.Model, size: Size, floor_s: float, budget_s: float) -> dict[str, Any]:
    """Milliseconds of passes over rows that follow a cached text, and of a token of plain decoding."""
    target = model.target
    timed = Passes(target, max(size.rows), size.context)
    calls = [timed.call(rows) for rows in size.rows]
    target.executor.settle(calls)
    times = medians(rounds_of(calls, target.device, budget_s=budget_s, most=40))
    prompt = load_prompts()[0].turns[0]
    for _ in range(2):  # the first answer makes ready what later ones use
        answer = model.generate(prompt, max_new_tokens=size.num_tokens, temperature=0.0)
    decoding_s = answer.stats.total_s - answer.stats.prefill_s
    return {
        "passes": [{"rows": rows, "ms": round(1e3 * one, 4)} for rows, one in zip(size.rows, times, strict=True)],
        "times_floor": round(times[0] / floor_s, 3),
        "plain_ms_per_token": round(1e3 * decoding_s / answer.stats.num_cycles, 4),
        "plain_times_floor": round(decoding_s / answer.stats.num_cycles / floor_s, 3),
    }


def bench(
    subjects: Subjects, out: Path, name: str, runtimes: tuple[str, ...], entrants: Callable[[], list[EntrantSpec]]
) -> Step:
    """Let methods and peers answer the shipped prompts, as many as there is time for.

    runtimes: the first that is not refused is taken.
    """

    def step(seconds: float) -> Iterator[Mapping[str, Any]]:
        watcher = UntilLate(seconds)
        plain, refused = subjects.run_by_first(runtimes)
        if plain is None:
            yield {"refused": refused}
            return
        run = _bench_run(subjects.size, plain, Path(name), entrants())
        run.measure_costs()
        found = load_entrants(plain, run.settings, run.leave_out)
        with suppress(LateError):
            run.run(found, ExactEntrants(lambda: plain, run.settings), watcher)
        if not run.num_done:
            raise InputError("no prompt was answered by all in this time; give more --minutes")
        record = write_record(run.folder)
        shutil.copy(run.folder / RECORD_FILE, out / f"{name}.json")
        yield {
            "record": f"{name}.json",
            "runtime": record.run.runtime,
            "refused": refused,
            "left_out": record.run.left_out,
            "num_prompts": record.num_prompts_done,
            "rows": _rows(record),
        }

    return step


def _bench_run(size: Size, plain: slipstream.Model, folder: Path, entrants: list[EntrantSpec]) -> BenchRun:
    """First turns only: more of them, of more kinds, fit into the time."""
    tasks = {
        task: [replace(one, turns=one.turns[:1]) for one in prompts]
        for task, prompts in load_tasks(None, None, size.prompts_per_task).items()
    }
    settings = BenchSettings(
        entrants=tuple(entrants),
        tasks=tuple(tasks),
        data="shipped prompts, first turns",
        questions_hash=questions_hash(tasks),
        prompts_per_task=size.prompts_per_task,
        max_new_tokens=size.num_tokens,
        temperatures=TEMPERATURES,
        judge="none",
    )
    return BenchRun(folder, plain, f"{size.model}, expanded", settings, tasks)


def _rows(record: Record) -> list[dict[str, Any]]:
    """The figures of all tasks together."""
    names = ("entrant", "temperature", "num_answers", "tau", "tokens_per_second", "ratio_to_plain")
    return [
        {**{name: getattr(row, name) for name in names}, "num_identical": row.verdicts and row.verdicts.identical}
        for row in record.rows
        if row.task == ALL
    ]


class LateError(Exception):
    """The next prompt would end too late."""


class UntilLate(Watcher):
    """Ends a run before a prompt that, at the pace of those before, would not end in time."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds
        self._began = time.monotonic()

    def starting(self, plan: Any) -> None:
        self._began = time.monotonic()

    def finished(self, progress: Progress) -> None:
        each = (time.monotonic() - self._began) / progress.num_done
        if progress.num_done < progress.num_prompts and time.monotonic() + each > self._ends:
            raise LateError


def peers(names: list[str]) -> list[EntrantSpec]:
    """Transformers' own of these names."""
    return [EntrantSpec(name=name, kind="peer", method=name) for name in names]


def steps(subjects: Subjects, out: Path, named_peers: list[str]) -> dict[str, Step]:
    """All of them, by their names in `gpu_options.py`.

    What transformers must compile first is in the last step: it may take all the time that there is.
    """

    def methods() -> list[EntrantSpec]:
        eager = [one for one in peers(named_peers) if one.method != "hf-compiled"]
        return [*subjects.specs.values(), *eager]

    def compiled() -> list[EntrantSpec]:
        return [subjects.specs[PLAIN], subjects.specs["eagle2"], *peers(named_peers)]

    return {
        "build": build(subjects),
        "tests": tests(),
        "identity": identity(subjects),
        "passes": passes(subjects),
        **{f"bench-{one}": bench(subjects, out, f"bench-{one}", (one,), methods) for one in RUNTIMES},
        "peers": bench(subjects, out, "peers", RUNTIMES, compiled),
    }


def provenance(device: torch.device, given: argparse.Namespace) -> dict[str, Any]:
    """Command, commit, versions, hardware. The target's part is found by the step `build`."""
    return {
        "command": shown_command(["python", *sys.argv]),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": given.commit or commit(),
        **versions("triton"),
        "hardware": hardware(device),
        "driver": driver(),
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "size": given.shape,
        "minutes": given.minutes,
    }


def driver() -> str | None:
    """Version of NVIDIA's; None where there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--minutes", type=float, required=True, help="of all steps")
    parser.add_argument("--until", type=float, required=True, help="when all must be over, in seconds since 1970")
    parser.add_argument("--work", type=Path, required=True, help="folder of the head and of the runs")
    parser.add_argument("--command", required=True, help="what the user gave, as a list in JSON")
    add_options(parser)
    given = parser.parse_args()
    names = step_names(parser, given.steps)
    sys.argv = json.loads(given.command)  # what every record calls the command
    out = given.out.resolve()
    for folder in (out, given.work):
        folder.mkdir(parents=True, exist_ok=True)
    os.chdir(given.work)
    journal = Journal(out / RECORD)
    journal.describe(provenance(torch.device(given.device), given))
    subjects = Subjects(SIZES[given.shape], given.device)
    every = steps(subjects, out, given.peers.split(","))
    return work({name: every[name] for name in names}, SHARES, journal, given.until)


if __name__ == "__main__":
    sys.exit(main())
