"""A small run of a benchmark, made once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import slipstream
from bench_run import carry_out
from byte_model import save_byte_model
from slipstream.bench.runner import BenchRun
from slipstream.bench.settings import BenchSettings, EntrantSpec
from slipstream.bench.tasks import load_tasks, questions_hash
from slipstream.share import ALONE, Share

ENTRANTS = ("plain", "layer-skip:width=2,depth=3,total=5", "prompt-lookup", "hf-plain")


@pytest.fixture(scope="session")
def byte_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_model(tmp_path_factory.mktemp("byte-model"), context=160)


@pytest.fixture(scope="session")
def byte_plain(byte_folder: Path) -> slipstream.Model:
    return slipstream.load(byte_folder, "plain", dtype="float64", device="cpu")


@pytest.fixture(scope="session")
def question_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks: three questions, of which one has two turns and one is too long for the context; and two."""
    folder = tmp_path_factory.mktemp("questions")
    tasks = {
        "mt_bench": [["Hello there!", "And then?"], ["Say it again and again and again."], ["word " * 60]],
        "mine": [["One?"], ["Two two two?"]],
    }
    for name, questions in tasks.items():
        lines = [json.dumps({"question_id": 80 + n, "turns": turns}) for n, turns in enumerate(questions)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


Start = Callable[..., BenchRun]


@pytest.fixture(scope="session")
def start(byte_plain: slipstream.Model, question_folder: Path) -> Start:
    """Start or resume a run in a folder."""

    def make(
        folder: Path,
        *,
        share: Share = ALONE,
        resume: bool = False,
        prompts_per_task: int | None = None,
        **changes: object,
    ) -> BenchRun:
        tasks = load_tasks(question_folder, None, prompts_per_task)
        settings = BenchSettings(
            entrants=tuple(EntrantSpec.parse(text, ["hf-plain"]) for text in changes.pop("entrants", ENTRANTS)),
            tasks=tuple(tasks),
            data="questions",
            questions_hash=questions_hash(tasks),
            prompts_per_task=prompts_per_task,
            **{"max_new_tokens": 8, "samples": 2, "repeats": 2, **changes},
        )
        return BenchRun(folder, byte_plain, "tiny", settings, tasks, share=share, resume=resume)

    return make


@pytest.fixture(scope="session")
def finished(start: Start, tmp_path_factory: pytest.TempPathFactory) -> BenchRun:
    run = start(tmp_path_factory.mktemp("runs") / "finished")
    carry_out(run)
    return run
