"""A job on a Ray cluster: the bytes of one process, also where a worker is killed or the job was begun without Ray."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import slipstream
from slipstream.cli.app import run as run_command
from slipstream.errors import InputError, SlipstreamError
from slipstream.jobs.job import Done, header
from slipstream.jobs.job import answer_all as answer_here
from slipstream.jobs.parts import Parts
from slipstream.jobs.prompts import Row, read_rows, rows_hash
from slipstream.share import Share

ray = pytest.importorskip("ray", reason="ray[data] is not installed")
pytest.importorskip("ray.data", reason="ray[data] is not installed", exc_type=ImportError)

import pyarrow as pa  # noqa: E402

from slipstream.jobs.on_ray import Job, answer_all  # noqa: E402
from slipstream.jobs.ray_cluster import Workers  # noqa: E402
from slipstream.jobs.ray_tasks import ANSWER, REFUSAL, ROW, Answers, Prompts  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # what Ray warns of is not ours to mend

COMMAND = ["answer", "-d", "prompt-lookup", "--dtype", "float64", "-n", "8", "-t", "0.9"]
SETTINGS = {"max_new_tokens": 8, "temperature": 0.9}


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Two processors. Workers die when a test says so, not when the machine is short of memory."""
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0"}
    os.environ |= {**quiet, "RAY_worker_niceness": "0"}
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


def job(before: Callable[[object], None]) -> Job:
    """Something is done before every answer. Functions in a function are sent as they are, not by a module's name."""

    def load() -> slipstream.Model:
        model = slipstream.load("tiny", "prompt-lookup", dtype="float64", keep=0)
        generate = model.generate

        def do_and_generate(prompt, **settings):
            before(prompt)
            return generate(prompt, **settings)

        model.generate = do_and_generate
        return model

    def describe(model: slipstream.Model) -> dict:
        return header(model, "tiny", {"verification": "coupled"}, SETTINGS, seed=0)

    return Job(load, describe, Path.cwd())


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

    def die_once(prompt: object) -> None:
        mine = seen / str(os.getpid())
        if mine.exists() and not (seen / "killed").exists():
            (seen / "killed").write_text(mine.name)
            os.kill(os.getpid(), 9)
        mine.touch()

    rows = read_rows(prompts)
    model = slipstream.load("tiny", "prompt-lookup", dtype="float64", keep=0)
    assert answer_here(model, rows, out, described(model), share=Share(0, 3)) == Done(4, 0, False)
    done, _ = answer_all(job(die_once), rows, out, file=prompts, num_workers=2)
    assert done == Done(8, 1, True)
    workers = {path.name for path in seen.iterdir()} - {"killed"}
    assert (seen / "killed").read_text() in workers
    assert len(workers) >= 2, "another one went on"
    assert out.read_bytes() == whole


@pytest.mark.slow
def test_a_row_that_kills_every_worker_ends_the_job_by_its_name(prompts, whole, tmp_path):
    """One worker, so the deaths are the row's alone; the rows before it are kept."""
    out, deaths = tmp_path / "out.jsonl", tmp_path / "deaths"

    def die(prompt: object) -> None:
        if prompt == [1, 40, 42]:
            with deaths.open("a") as file:
                file.write("x")
            os._exit(1)

    rows = read_rows(prompts)[:5]
    with pytest.raises(
        SlipstreamError, match=r"^3 workers died .* while they answered row 4; what is answered is kept"
    ):
        answer_all(job(die), rows, out, num_workers=1)
    assert deaths.read_text() == "xxx"
    kept = Parts(out, {}).done()
    assert {"hello", 70, 3} <= set(kept)
    model = slipstream.load("tiny", "prompt-lookup", dtype="float64", keep=0)
    done = answer_here(model, rows, out, described(model))
    assert done == Done(5 - len(kept), 1, True)
    assert out.read_bytes() == b"".join(whole.splitlines(keepends=True)[:5])


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


def test_rows_that_are_left_are_read_as_they_are(tmp_path):
    """Times stay texts, separators of lines stay inside them, and rows without an id keep their numbers."""
    records = [
        {"prompt": "2024-01-01"},
        {"id": "a", "prompt": "one\u2028two"},
        {"id": 7, "messages": [{"role": "user", "content": "Hi"}]},
        {"prompt": "last"},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), encoding="utf-8")
    rows = read_rows(file)
    (task,) = Prompts(file, rows_hash(rows), [1, "a", 4]).get_read_tasks(3)
    (block,) = task()
    assert [Row(*json.loads(text)) for text in block[ROW].to_pylist()] == [rows[0], rows[1], rows[3]]
    (task,) = Prompts(file, rows_hash(rows[1:]), ["a"]).get_read_tasks(1)
    with pytest.raises(InputError, match="has changed since the job began"):
        list(task())


def test_answers_that_are_written_twice_are_there_once_and_before_a_refusal(tmp_path):
    """Ray may run a task again."""
    parts = Parts(tmp_path / "out.jsonl", {})
    parts.begin()
    found = [{"id": 1, "text": "A\u00e9"}, {"id": "1", "text": "B"}]
    block = pa.table({ANSWER: [json.dumps(one) for one in found]})
    for _ in range(2):
        Answers(parts.folder).write([block], None)
    assert len(list(parts.folder.glob("*.jsonl"))) == 1
    assert parts.done() == {1: '{"id": 1, "text": "A\u00e9"}\n', "1": '{"id": "1", "text": "B"}\n'}
    mixed = [{"id": 2, "text": "C"}, {REFUSAL: ["InputError", "no such machine"]}]
    with pytest.raises(InputError, match=r"^no such machine$"):
        Answers(parts.folder).write([pa.table({ANSWER: [json.dumps(one)]}) for one in mixed], None)
    assert set(parts.done()) == {1, "1", 2}


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:{port}", "error: no Ray cluster at 127.0.0.1:{port} ([Errno"),
        ("ray://127.0.0.1:{port}", "error: ray://127.0.0.1:{port} is for programs elsewhere; run this on a machine of"),
    ],
)
def test_a_cluster_that_is_not_there_is_one_line(address, said, prompts, tmp_path, capfd):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        port = taken.getsockname()[1]
        words = [*COMMAND, "--in", prompts, "--out", tmp_path / "out.jsonl", "--ray", address.format(port=port)]
        assert run_command(list(map(str, words))) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(said.format(port=port))
    assert not (tmp_path / "out.jsonl.parts").exists()


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
