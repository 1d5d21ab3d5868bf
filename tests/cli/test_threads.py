"""Commands run small models on one thread of a CPU, larger ones on PyTorch's, and either on what was asked for."""

from __future__ import annotations

import pytest
import torch

LARGE = 500_000_000
COMMANDS = {
    "generate": ("generate", "-m", "tiny", "-p", "Hello"),
    "chat": ("chat", "-m", "tiny"),
    "demo": ("demo", "--methods", "layer-skip", "--prompts", 1),
}


@pytest.fixture(autouse=True)
def three_threads(monkeypatch, same_threads):
    """PyTorch's own choice on this machine, and nothing in the environment."""
    torch.set_num_threads(3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("num_parameters", "arguments", "threads"),
    [(10_000_000, (), 1), (LARGE, (), 3), (10_000_000, ("--threads", 2), 2), (LARGE, ("--threads", 2), 2)],
)
def test_small_models_get_one_thread(cli, loader, command, num_parameters, arguments, threads):
    loader.num_parameters = num_parameters
    done = cli(*COMMANDS[command], *arguments, stdin="Hello\n")
    assert done.exit_code == 0, done.stderr
    assert torch.get_num_threads() == threads


def test_what_the_environment_says_stays(cli, loader, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cli(*COMMANDS["generate"]).exit_code == 0
    assert torch.get_num_threads() == 3


def test_a_gpu_leaves_threads_alone(cli, loader):
    assert cli(*COMMANDS["generate"], "--device", "cuda").exit_code == 0
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("command", COMMANDS)
def test_no_threads_are_refused_before_anything_is_loaded(cli, loader, command):
    done = cli(*COMMANDS[command], "--threads", 0)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == "error: --threads is 0; it must be at least 1"
    assert not loader.models


def test_the_demo_says_how_many(cli, loader):
    assert "float32 on cpu, 1 thread. Took" in " ".join(cli(*COMMANDS["demo"]).stdout.split())
