"""What a GPU is to be asked runs end to end at small sizes on a CPU, and no step that goes wrong stops another."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir(), reason="the benchmark scripts are not in this distribution")

STEPS = """
import os, sys, time
from pathlib import Path
from timed_steps import Journal, work

def good(seconds):
    yield {"half": True}
    yield {"half": False}

def bad(seconds):
    yield {"before": 1}
    raise ValueError("no such number\\nand more")

def dies(seconds):
    yield {"before": 2}
    os._exit(3)

def hangs(seconds):
    yield {"before": 3}
    time.sleep(600)

def slow(seconds):
    while True:
        time.sleep(0.05)
        yield {"allowed": seconds}

every = {"good": good, "bad": bad, "dies": dies, "hangs": hangs, "slow": slow, "last": good}
names = sys.argv[3].split(",")
shares = {**dict.fromkeys(every, 1.0), "hangs": 0.1, "slow": 0.1}
sys.exit(work({name: every[name] for name in names}, shares, Journal(Path(sys.argv[1])), float(sys.argv[2])))
"""


@pytest.fixture
def timed_steps(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setenv("PYTHONPATH", f"{SCRIPTS}:{SCRIPTS.parent / 'src'}")
    return importlib.import_module("timed_steps")


def test_a_step_that_fails_dies_hangs_or_is_slow_stops_no_other(timed_steps, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(timed_steps, "GRACE_S", 0.5)
    record, until = tmp_path / "record.json", time.time() + 20
    names = ["good", "bad", "dies", "hangs", "slow", "last"]

    def command(left: Sequence[str]) -> list[str]:
        return [sys.executable, "-c", STEPS, str(record), str(until), ",".join(left)]

    assert timed_steps.drive(command, names, record, until) == 3
    steps = json.loads(record.read_text())["steps"]
    assert {name: one["ended"] for name, one in steps.items()} == {
        "good": "done",
        "bad": "failed",
        "dies": "stopped",
        "hangs": "stopped",
        "slow": "late",
        "last": "done",
    }
    assert steps["bad"]["error"] == "ValueError: no such number"
    assert [steps[name]["found"] for name in names[:4]] == [{"half": False}, *({"before": n} for n in (1, 2, 3))]
    assert steps["slow"]["seconds"] < steps["slow"]["allowed_s"] + 2
    assert time.time() < until


def test_all_is_over_when_the_time_is(timed_steps, tmp_path) -> None:
    record, until = tmp_path / "record.json", time.time() + 1

    def command(left: Sequence[str]) -> list[str]:
        return [sys.executable, "-c", "import time; time.sleep(600)"]

    assert timed_steps.drive(command, ["one", "other"], record, until) == 2
    steps = json.loads(record.read_text())["steps"]
    assert "before it began" in steps["one"]["error"]
    assert steps["other"]["error"] == "no time was left"
    assert time.time() < until + 5


def test_time_that_is_left_goes_to_the_steps_behind(timed_steps, tmp_path) -> None:
    allowed = []

    def step(seconds: float) -> Iterator[Mapping[str, Any]]:
        allowed.append(seconds)
        yield {}

    journal = timed_steps.Journal(tmp_path / "record.json")
    shares = {"one": 1.0, "two": 1.0, "three": 2.0}
    assert timed_steps.work(dict.fromkeys(shares, step), shares, journal, time.time() + 40) == 0
    assert allowed == [pytest.approx(one, abs=1) for one in (10, 40 / 3, 40)]


@pytest.mark.slow
def test_every_step_runs_at_small_sizes(tmp_path) -> None:
    out = tmp_path / "out"
    asked = ["--device", "cpu", "--shape", "small", "--peers", "hf-plain", "--minutes", "8", "--commit", "abc"]
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "gpu.py"), "measure", "--out", str(out), "--pack", str(tmp_path), *asked],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "gpu.json").read_text())
    assert record["provenance"]["commit"] == "abc"
    assert record["provenance"]["command"].startswith("python .../gpu.py measure --out .../out")
    steps = record["steps"]
    assert {one["ended"] for one in steps.values()} == {"done"}
    found = {name: one["found"] for name, one in steps.items()}
    assert found["build"]["num_parameters"] > 2e7
    assert found["tests"]["exit"] == 0
    for row in found["identity"]["expanded"].values():
        assert row["num_identical"] == row["num_answers"] > 0
        assert row["num_same_choice"] == row["num_positions"]
    drafted = found["identity"]["head"]["eagle2-60"]
    assert drafted["num_same_lengths"] == drafted["num_answers"] > 0
    ours = {"eagle2", "eagle2-60", "layer-skip", "prompt-lookup", "auto"}
    compared = found["identity"]["float32"]
    assert compared.keys() == {f"{name}, T={temperature}" for name in ours for temperature in (0, 1)}
    assert all(row["num_identical"] == row["num_answers"] > 0 for row in compared.values())
    assert all(row["identical to same shape"] == 1 for row in found["identity"]["same_shape"].values())
    assert found["passes"]["runtimes"]["eager"]["plain_ms_per_token"] > 0
    rows = found["bench-eager"]["rows"]
    assert {row["entrant"] for row in rows} == {"plain", "hf-plain", *ours}
    assert all(row["num_identical"] == row["num_answers"] > 0 for row in rows if row["entrant"] != "hf-plain")
    taus = {row["entrant"]: row["tau"] for row in rows if row["temperature"] == 0}
    assert taus["eagle2-60"] > 1.5, "the head drafts for the model that was made large"
    assert {row["entrant"] for row in found["peers"]["rows"]} == {"plain", "eagle2", "hf-plain"}
    for name in ("bench-eager", "peers"):
        bench = json.loads((out / f"{name}.json").read_text())
        assert bench["complete"]
        assert bench["run"]["command"].startswith("gpu.py measure --out .../out")
