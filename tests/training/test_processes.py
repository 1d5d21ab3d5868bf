"""Training on several processes is training on one with the batch of all, and resumes as it does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from families import build
from slipstream.cli.train import app
from slipstream.training.data.tokenizer import save_tokenizer, train_tokenizer

TALK = [f"the bird number {n} sings over the river and {n} more follow" for n in range(9)]
SETTINGS = [
    *("--steps", "6", "--report-every", "3", "--noise", "0", "--learning-rate", "1e-3"),
    *("--answer-tokens", "8", "--device", "cpu"),
]


@pytest.fixture(autouse=True)
def _fresh_accelerate_state():
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny target with its tokenizer, and a data file. Its answers are never ended, so all are of one length."""
    path = tmp_path / "target"
    save_tokenizer(train_tokenizer(TALK, 300), path, 128)
    model = build("llama", vocab_size=300, weight_std=0.2).float()
    model.generation_config.eos_token_id = None
    model.save_pretrained(path)
    lines = [{"messages": [{"role": "user", "content": one}, {"role": "assistant", "content": "yes"}]} for one in TALK]
    (path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def alone(out: Path, options: list[str]) -> torch.Tensor:
    done = CliRunner().invoke(app, ["eagle", "--out", str(out), *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return weights(out)


def weights(out: Path) -> torch.Tensor:
    """All weights of a head in one row."""
    tensors = load_file(out / "model.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(folder, tmp_path):
    options = ["-m", str(folder), "--data", str(folder / "data.jsonl"), *SETTINGS, "--batch-size"]
    script = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(
        [*command, str(tmp_path), "3", *options, "2"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("resumed at step 3") == 1  # the main process alone speaks
    log = json.loads((tmp_path / "whole" / "training.json").read_text())
    assert (log["settings"]["num_processes"], log["step"]) == (2, 6)
    whole = weights(tmp_path / "whole")
    assert torch.equal(weights(tmp_path / "stopped"), whole)
    twice = alone(tmp_path / "twice", [*options, "4"])
    once = alone(tmp_path / "once", [*options, "2"])
    assert (whole - twice).norm() < 0.01 * (whole - once).norm()
