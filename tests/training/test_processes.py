"""Training on several processes is training on one, whatever their number when a run begins and when it goes on.

What is equal: the losses of every step, accuracies and weights, but for the rounding of sums taken in another order.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from families import build
from slipstream.training.data.batches import share
from slipstream.training.data.tokenizer import save_tokenizer, train_tokenizer
from training.two_processes import train

TALK = [f"the bird number {n} sings over the river" + " and on" * (n % 4) for n in range(12)]
STEPS, STOP, EVERY = 6, 3, 3
NOISY = [
    "eagle",
    "--noise",
    "0.2",
    "--loss-vocabulary",
    "100",
    "--steps-ahead",
    "2",
    "--batch-size",
    "3",
    "--held-out",
    "0",
]
DEEP = ["eagle3", "--draft-vocabulary", "300", "--steps-ahead", "3", "--batch-size", "4"]
MANY = ["medusa", "--heads", "2", "--labels", "target", "--optimizer", "muon", "--batch-size", "2", "--held-out", "0"]


@pytest.fixture(autouse=True)
def _fresh_accelerate_state():
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny target with its tokenizer, and a data file of dialogues of several lengths."""
    path = tmp_path_factory.mktemp("target")
    save_tokenizer(train_tokenizer(TALK, 300), path, 128)
    build("llama", vocab_size=300, weight_std=0.2).float().save_pretrained(path)
    lines = [
        {"messages": [{"role": "user", "content": one}, {"role": "assistant", "content": "yes " * (n % 5 + 1)}]}
        for n, one in enumerate(TALK)
    ]
    (path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def options(folder: Path, out: Path, more: list[str], answers: str = "data") -> list[str]:
    """The arguments of `slipstream train`."""
    return [
        *(more[0], "-m", str(folder), "--data", str(folder / "data.jsonl"), "--out", str(out), "--answers", answers),
        *("--steps", str(STEPS), "--report-every", str(EVERY), "--learning-rate", "1e-3", "--device", "cpu", *more[1:]),
    ]


def start_two(runs: list[tuple[list[str], int | None, str]], file: Path) -> list[subprocess.Popen[str]]:
    """Two processes that make all the runs together, without a launcher that would end them."""
    file.write_text(json.dumps(runs))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    everywhere = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("two_processes.py")), str(file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **everywhere, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]


def weights(out: Path) -> torch.Tensor:
    """All weights of a head in one row."""
    tensors = load_file(out / "state" / "model.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def curve(out: Path) -> list[dict[str, Any]]:
    """What is logged, but times."""
    log = json.loads((out / "training.json").read_text())
    return [{name: value for name, value in one.items() if not name.endswith("_s")} for one in log["losses"]]


def check_same(out: Path, alone: Path) -> None:
    """The same curve and weights."""
    ours, theirs = curve(out), curve(alone)
    assert [one["step"] for one in ours] == list(range(EVERY, STEPS + 1, EVERY))
    for one, other in zip(ours, theirs, strict=True):
        for name in set(other) - {"tau_estimates"}:
            assert one[name] == pytest.approx(other[name], rel=1e-4), (one["step"], name)
    assert torch.allclose(weights(out), weights(alone), rtol=1e-3, atol=1e-5)


def test_two_processes_train_as_one_and_go_on_as_another_number(folder, tmp_path):
    """Shares of 2 and 1 dialogues, steps of a single one, recipes of three kinds; runs change hands halfway."""
    single = ["eagle", "--batch-size", "1"]
    for name, more in (("noisy", NOISY), ("deep", DEEP), ("many", MANY)):
        assert train(options(folder, tmp_path / f"{name}-alone", more), None, "") == 0
    assert train(options(folder, tmp_path / "joined", NOISY), STOP, "stopped") == 0
    runs = [
        (options(folder, tmp_path / "noisy", NOISY), None, ""),
        (options(folder, tmp_path / "deep", DEEP), None, ""),
        (options(folder, tmp_path / "many", MANY), None, ""),
        (options(folder, tmp_path / "joined", NOISY), None, ""),
        (options(folder, tmp_path / "left", NOISY), STOP, "stopped"),
        (options(folder, tmp_path / "single", single), None, ""),
    ]
    first, second = start_two(runs, tmp_path / "runs.json")
    _, said = first.communicate(timeout=240)
    _, other = second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (2, 2), said + other
    refused = "a step of 1 dialogues cannot be shared among 2 processes; give batch_size 2 or more"
    assert [said.count(one) for one in (refused, f"resumed at step {STOP}")] == [1, 1]
    assert "resumed" not in other  # the main process alone speaks
    for name in ("noisy", "deep", "many"):
        check_same(tmp_path / name, tmp_path / f"{name}-alone")
    check_same(tmp_path / "joined", tmp_path / "noisy-alone")
    assert train(options(folder, tmp_path / "left", NOISY), None, "") == 0
    check_same(tmp_path / "left", tmp_path / "noisy-alone")


def test_accelerate_launch_starts_two_on_a_cpu_too(folder, tmp_path):
    """Its --multi_gpu asks for several processes, not for GPUs; with --cpu it starts one, whatever their number."""
    assert train(options(folder, tmp_path / "alone", NOISY), None, "") == 0
    launch = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    plain = (
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
        "-m",
        "slipstream",
        "train",
    )
    done = subprocess.run(
        [sys.executable, "-m", *launch, *plain, *options(folder, tmp_path / "launched", NOISY)],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"--draft {tmp_path / 'launched'}") == 1  # the main process alone speaks
    check_same(tmp_path / "launched", tmp_path / "alone")


def test_a_process_that_dies_ends_the_other_with_one_line(folder, tmp_path):
    """The run goes on in one process, with the answers that two have written."""
    told = options(folder, tmp_path / "run", [*NOISY, "--answer-tokens", "4"], "target")
    first, second = start_two([(told, STOP, "killed")], tmp_path / "runs.json")
    second.communicate(timeout=120)
    began = time.monotonic()
    _, said = first.communicate(timeout=60)
    assert time.monotonic() - began < 60
    assert (first.returncode, second.returncode) == (1, -9)
    lines = [line for line in said.splitlines() if line.startswith("error:")]
    assert lines == ["error: another process of this run has ended; start all processes again"]
    assert "Traceback" not in said
    assert curve(tmp_path / "run")[-1]["step"] == STOP  # what was saved is whole
    answers = {file.name: file.read_bytes() for file in (tmp_path / "run").glob("answers-*.jsonl")}
    assert len(answers) == 3  # of each process, and of both
    assert train(told, None, "") == 0
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").glob("answers-*.jsonl")} == answers
    assert curve(tmp_path / "run")[-1]["step"] == STEPS


def test_shares_are_the_whole_step_once():
    for num_dialogues in range(1, 9):
        for processes in range(1, 5):
            taken = [place for rank in range(processes) for place in share(num_dialogues, rank, processes)]
            assert sorted(taken) == list(range(num_dialogues))
