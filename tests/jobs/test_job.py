"""A job's file holds the same bytes whoever answered, in the order of the prompts, and a kill costs one answer."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import slipstream
from slipstream.cli.app import run as run_command
from slipstream.errors import InputError
from slipstream.jobs.job import COMPILED, EXACT, ROUNDED, Done, answer_all, header
from slipstream.jobs.parts import Parts
from slipstream.jobs.prompts import Row, read_rows
from slipstream.share import Share

SETTINGS = {"max_new_tokens": 8, "temperature": 0.9}
PROMPTS = [
    {"id": "hello", "prompt": "Hello!"},
    {"id": 7, "messages": [{"role": "user", "content": "What is 2 + 3?"}]},
    {"prompt": "Write a Python function that adds two numbers."},
    {"id": "again", "prompt": "Hello!"},
    {"id": "ids", "token_ids": [1, 40, 41, 42]},
]


@pytest.fixture(scope="module")
def model() -> slipstream.Model:
    return slipstream.load("tiny", "prompt-lookup", dtype="float64", keep=0)


@pytest.fixture
def rows(tmp_path) -> list[Row]:
    return read_rows(written(tmp_path / "prompts.jsonl", PROMPTS))


def written(file: Path, records: list) -> Path:
    file.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return file


def run(model: slipstream.Model, rows: list[Row], out: Path, *shares: Share) -> list[Done]:
    head = header(model, "tiny", {}, SETTINGS, seed=3)
    return [answer_all(model, rows, out, head, share=share) for share in shares or (Share(),)]


def test_a_job_answers_every_row_in_order_as_generate_does(model, rows, tmp_path):
    (done,) = run(model, rows, tmp_path / "out.jsonl")
    assert done == Done(5, 0, True)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [one["id"] for one in found] == ["hello", 7, 3, "again", "ids"]
    for row, one in zip(rows, found, strict=True):
        expected = model.generate(row.prompt, seed=row.seed(3), **SETTINGS)
        assert (one["token_ids"], one["text"]) == (expected.token_ids, expected.text)
    assert found[0]["token_ids"] != found[3]["token_ids"], "the same prompt under another id has another seed"
    left = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert left == {"out.jsonl", "out.jsonl.job.json", "prompts.jsonl"}


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_bytes_do_not_depend_on_how_many_processes_there_are(world_size, model, rows, tmp_path):
    run(model, rows, tmp_path / "one.jsonl")
    shares = [Share(rank, world_size) for rank in reversed(range(world_size))]
    done = run(model, rows, tmp_path / "many.jsonl", *shares)
    assert [one.complete for one in done] == [False] * (world_size - 1) + [True]
    assert (tmp_path / "many.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_a_job_goes_on_with_another_number_of_processes_and_drops_a_line_that_was_cut_off(model, rows, tmp_path):
    out = tmp_path / "out.jsonl"
    run(model, rows, tmp_path / "whole.jsonl")
    (first,) = run(model, rows, out, Share(0, 2))
    assert first == Done(3, 0, False)
    part = tmp_path / "out.jsonl.parts" / "0-of-2.jsonl"
    part.write_bytes(part.read_bytes()[:-9])
    (rest,) = run(model, rows, out)
    assert rest == Done(3, 0, True), "two of the first process's three answers were whole"
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert run(model, rows, out) == [Done(0, 0, True)], "there is nothing left to do"


@pytest.mark.parametrize("is_joined", [False, True])
def test_of_processes_that_end_together_one_writes_the_file(is_joined, tmp_path):
    parts = [Parts(tmp_path / "out.jsonl", {"model": "tiny"}) for _ in range(8)]
    for number, one in enumerate(parts):
        one.begin()
        with one.writing(number, 8) as part:
            part.add({"id": number})
    if is_joined:
        assert parts[0].join(range(8))
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda one: one.join(range(8)), parts))
    assert sum(done) == (not is_joined)
    assert [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == list(range(8))


def test_a_folder_that_a_kill_left_beside_the_file_is_removed_and_the_file_stays(tmp_path):
    parts = Parts(tmp_path / "out.jsonl", {"model": "tiny"})
    parts.begin()
    with parts.writing(0, 1) as part:
        part.add({"id": 0})
    (tmp_path / "out.jsonl").write_text("written before the kill")
    assert not parts.join([0])
    assert (tmp_path / "out.jsonl").read_text() == "written before the kill"
    assert {path.name for path in tmp_path.iterdir()} == {"out.jsonl"}


def test_another_job_is_not_mixed_in(model, rows, tmp_path):
    out = tmp_path / "out.jsonl"
    run(model, rows, out, Share(0, 2))
    with pytest.raises(InputError, match=r"of another job.*differs in seed"):
        answer_all(model, rows, out, header(model, "tiny", {}, SETTINGS, seed=4))
    with pytest.raises(InputError, match="differs in num_prompts, prompts"):
        answer_all(model, rows[:3], out, header(model, "tiny", {}, SETTINGS, seed=3))
    run(model, rows, out)
    with pytest.raises(InputError, match="is there already and is not this job's"):
        answer_all(model, rows, out, header(model, "tiny", {}, {**SETTINGS, "top_p": 0.5}, seed=3))


def test_a_row_that_cannot_be_answered_says_why_and_stops_nothing(model, tmp_path):
    rows = [Row(1, "Hello!"), Row(2, [10] * 5000), Row(3, "Hello!")]
    (done,) = run(model, rows, tmp_path / "out.jsonl")
    assert done == Done(3, 1, True)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert set(lines[1]) == {"id", "error"}
    assert "4096" in lines[1]["error"]


def test_two_processes_of_one_number_are_refused(rows, tmp_path):
    parts = Parts(tmp_path / "out.jsonl", {"model": "tiny"})
    parts.begin()
    with parts.writing(0, 2), pytest.raises(InputError, match="already process 0 of 2"), parts.writing(0, 2):
        pass


@pytest.mark.parametrize(
    ("method", "options", "dtype", "note"),
    [
        ("prompt-lookup", {}, "float64", EXACT),
        ("prompt-lookup", {}, None, ROUNDED),
        ("prompt-lookup", {"length": 6}, None, EXACT),
        ("prompt-lookup", {"total": 3}, None, ROUNDED),
        ("plain", {}, None, EXACT),
        ("eagle2", {}, None, ROUNDED),
        ("eagle2", {"total": 8}, None, EXACT),
        ("layer-skip", {"tree": "chain"}, None, ROUNDED),
        ("auto", {}, None, ROUNDED),
        ("plain", {"runtime": "compiled"}, None, COMPILED),
        ("plain", {"runtime": "compiled"}, "float64", EXACT),
    ],
)
def test_the_header_says_whether_rounding_may_differ(method, options, dtype, note):
    found = slipstream.load("tiny", method, dtype=dtype, **{"runtime": "eager", **options})
    head = header(found, "tiny", options, {}, 0)
    assert (head["note"], head["runtime"]) == (note, options.get("runtime", "eager"))


# --- the command ----------------------------------------------------------------------------------------------------


def command(*arguments: object) -> list[str]:
    method = ("-d", "prompt-lookup", "--dtype", "float64", "-n", "24", "-t", "0.9")
    return [sys.executable, "-m", "slipstream", "answer", *map(str, arguments), *method]


def test_a_killed_process_loses_one_answer_and_two_of_torchrun_share_the_rest(tmp_path):
    prompts = written(tmp_path / "prompts.jsonl", [{"id": n, "prompt": f"Count to {n}."} for n in range(24)])
    whole, shared = tmp_path / "whole.jsonl", tmp_path / "shared.jsonl"
    assert subprocess.run(command("--in", prompts, "--out", whole), check=False).returncode == 0
    killed = subprocess.Popen(command("--in", prompts, "--out", shared), stderr=subprocess.DEVNULL)
    part = tmp_path / "shared.jsonl.parts" / "0-of-1.jsonl"
    while not (part.exists() and part.read_bytes().count(b"\n") >= 3):
        assert killed.poll() is None, "it must not be done before it is killed"
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not shared.exists()
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    words = command("--in", prompts, "--out", shared)
    assert subprocess.run([words[0], *torchrun, *words[1:]], check=False).returncode == 0
    assert shared.read_bytes() == whole.read_bytes()


def test_two_of_accelerate_launch_write_one_file(model, rows, tmp_path):
    run(model, rows, tmp_path / "whole.jsonl")
    launch = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    plain = ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
    words = command("--in", tmp_path / "prompts.jsonl", "--out", tmp_path / "out.jsonl", "--seed", 3)
    words[words.index("24")] = "8"
    done = subprocess.run([words[0], "-m", *launch, *plain, *words[1:]], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("of 2 is done; the last one writes") == 1
    assert done.stderr.count(": 5 answers; ") == 1
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_the_command_exits_with_1_where_a_row_failed(tmp_path):
    prompts = written(tmp_path / "prompts.jsonl", [{"prompt": "Hi"}, {"token_ids": [10] * 5000}])
    done = subprocess.run(
        command("--in", prompts, "--out", tmp_path / "out.jsonl"), check=False, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: 1 of 2 rows could not be answered; their lines say why"


def test_what_the_environment_says_of_processes_is_checked(monkeypatch):
    for rank, size, said in (("2", "2", "must lie from 0 to 1"), ("x", "2", "give numbers")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", size)
        with pytest.raises(InputError, match=said):
            Share.from_environment()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workers", 2], "--workers is about --ray"),
        (["--ray", "--device", "cuda:1"], "--device is cuda:1, but with --ray each worker has a GPU of its own"),
        (["--ray"], "--ray needs Ray ("),
        (["--ray", "somewhere:6379"], "--ray needs Ray ("),
    ],
)
def test_what_ray_cannot_do_is_one_clear_line(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "slipstream.jobs.on_ray", raising=False)
    prompts = written(tmp_path / "prompts.jsonl", PROMPTS)
    words = ["answer", "--in", prompts, "--out", tmp_path / "out.jsonl", *arguments]
    assert run_command(list(map(str, words))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")
    assert not (tmp_path / "out.jsonl.parts").exists()


def test_ray_and_torchrun_are_not_mixed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    prompts = written(tmp_path / "prompts.jsonl", PROMPTS)
    assert run_command(["answer", "--ray", "--in", str(prompts), "--out", str(tmp_path / "out.jsonl")]) == 2
    assert "--ray starts workers itself" in capsys.readouterr().err
