"""A job on a Ray cluster: the bytes of one process, also where a worker is killed or the job was begun without Ray."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

import slipstream
from slipstream.cli.app import run as run_command
from slipstream.errors import InputError
from slipstream.jobs.job import Done, header
from slipstream.jobs.job import answer_all as answer_here
from slipstream.jobs.prompts import read_rows
from slipstream.share import Share

ray = pytest.importorskip("ray", reason="ray[data] is not installed")
pytest.importorskip("ray.data", reason="ray[data] is not installed", exc_type=ImportError)

from slipstream.jobs.on_ray import Job, Workers, answer_all  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # what Ray warns of is not ours to mend

COMMAND = ["answer", "-d", "prompt-lookup", "--dtype", "float64", "-n", "8", "-t", "0.9"]
SETTINGS = {"max_new_tokens": 8, "temperature": 0.9}


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Two processors."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture
def prompts(tmp_path) -> Path:
    file = tmp_path / "prompts.jsonl"
    records = [
        {"id": "hello", "prompt": "Hello!"},
        {"id": 70, "messages": [{"role": "user", "content": "What is 2 + 3?"}]},
        {"prompt": [10] * 5000},
        *({"token_ids": [1, 40 + n, 42]} for n in range(9)),
    ]
    file.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return file


@pytest.fixture
def whole(prompts, tmp_path) -> bytes:
    """What one process writes."""
    model = slipstream.load("tiny", "prompt-lookup", dtype="float64", keep=0)
    answer_here(model, read_rows(prompts), tmp_path / "whole.jsonl", described(model))
    return (tmp_path / "whole.jsonl").read_bytes()


def described(model: slipstream.Model) -> dict:
    return header(model, "tiny", {"verification": "coupled"}, SETTINGS, seed=0)


@pytest.mark.slow
def test_two_workers_write_what_one_process_does(prompts, whole, tmp_path, capfd):
    out = tmp_path / "out.jsonl"
    words = [*COMMAND, "--in", prompts, "--out", out, "--ray", "--workers", "2"]
    assert run_command(list(map(str, words))) == 1, "one row is too long, as the command says in the end"
    assert capfd.readouterr().err.splitlines()[-1] == "error: 1 of 12 rows could not be answered; their lines say why"
    assert out.read_bytes() == whole
    assert (tmp_path / "out.jsonl.job.json").read_bytes() == (tmp_path / "whole.jsonl.job.json").read_bytes()
    assert run_command(list(map(str, words[:-3]))) == 1
    assert out.read_bytes() == whole


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_nothing_is_lost_or_doubled(prompts, whole, tmp_path):
    """A third of the rows was answered before, without Ray."""
    out, seen = tmp_path / "out.jsonl", tmp_path / "seen"
    seen.mkdir()

    def load() -> slipstream.Model:  # a function in a function is sent as it is, not by its module's name
        model = slipstream.load("tiny", "prompt-lookup", dtype="float64", keep=0)
        generate = model.generate

        def generate_or_die(prompt, **settings):
            mine = seen / str(os.getpid())
            if mine.exists() and not (seen / "killed").exists():
                (seen / "killed").write_text(mine.name)
                os.kill(os.getpid(), 9)
            mine.touch()
            return generate(prompt, **settings)

        model.generate = generate_or_die
        return model

    def describe(model: slipstream.Model) -> dict:
        return header(model, "tiny", {"verification": "coupled"}, SETTINGS, seed=0)

    rows = read_rows(prompts)
    model = slipstream.load("tiny", "prompt-lookup", dtype="float64", keep=0)
    assert answer_here(model, rows, out, described(model), share=Share(0, 3)) == Done(4, 0, False)
    done, _ = answer_all(Job(load, describe, Path.cwd()), rows, out, num_workers=2)
    assert done == Done(8, 1, True)
    workers = {path.name for path in seen.iterdir()} - {"killed"}
    assert (seen / "killed").read_text() in workers
    assert len(workers) >= 2, "another one went on"
    assert out.read_bytes() == whole


def test_what_a_worker_refuses_is_one_line(prompts, tmp_path, capfd):
    words = [*COMMAND, "--in", prompts, "--out", tmp_path / "out.jsonl", "--ray", "-m", tmp_path / "none"]
    assert run_command(list(map(str, words))) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert str(tmp_path / "none") in last
    assert not (tmp_path / "out.jsonl.parts").exists()


def test_a_worker_of_another_kind_ends_the_job(prompts, tmp_path):
    def load() -> slipstream.Model:
        return slipstream.load("tiny", "plain", dtype="float64")

    def describe(model: slipstream.Model) -> dict:
        return {**header(model, "tiny", {}, SETTINGS, seed=0), "target": str(time.time_ns())}

    with pytest.raises(InputError, match="machines of the cluster differ in target; install the same on all"):
        answer_all(Job(load, describe, Path.cwd()), read_rows(prompts), tmp_path / "out.jsonl")


def test_workers_share_the_processors_of_a_machine():
    assert Workers.on_cluster(None) == Workers(1, 0, 2)
    assert Workers.on_cluster(2) == Workers(2, 0, 1)
    with pytest.raises(InputError, match="--workers is 3, but the cluster has 2 processors"):
        Workers.on_cluster(3)


@pytest.mark.parametrize(
    ("nodes", "asked", "expected"),
    [
        ([{"CPU": 16.0, "GPU": 8.0}, {"CPU": 4.0}], None, Workers(8, 1, None)),
        ([{"CPU": 16.0, "GPU": 8.0}, {"CPU": 16.0, "GPU": 8.0}], 12, Workers(12, 1, None)),
        ([{"CPU": 16.0}, {"CPU": 16.0}], None, Workers(2, 0, 16)),
        ([{"CPU": 6.0}, {"CPU": 6.0}], 3, Workers(3, 0, 3)),
        ([{"CPU": 16.0}, {"CPU": 4.0}, {"memory": 1.0}], 5, Workers(5, 0, 4)),
    ],
)
def test_workers_fit_on_machines(nodes, asked, expected, monkeypatch):
    alive = [{"Alive": True, "Resources": one} for one in nodes]
    monkeypatch.setattr(ray, "nodes", lambda: [*alive, {"Alive": False, "Resources": {"GPU": 8.0}}])
    assert Workers.on_cluster(asked) == expected
