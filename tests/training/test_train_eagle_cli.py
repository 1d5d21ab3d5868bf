"""`slipstream train eagle` from a model folder and a data file to a head that `-d eagle2` uses."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

import slipstream
from families import build
from slipstream.cli.app import app as root
from slipstream.cli.train import app
from slipstream.errors import InputError
from slipstream.training.data.tokenizer import save_tokenizer, train_tokenizer
from slipstream.training.run import HeadRun

TALK = [f"the bird number {n} sings over the river and {n} more follow" for n in range(40)]


@pytest.fixture(autouse=True)
def _fresh_accelerate_state():
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny target with its tokenizer, and a data file."""
    path = tmp_path_factory.mktemp("target")
    save_tokenizer(train_tokenizer(TALK, 300), path, 128)
    model = build("llama", vocab_size=300, weight_std=0.2).float()
    model.generation_config.eos_token_id = 2
    model.save_pretrained(path)
    lines = [{"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": t[::-1]}]} for t in TALK]
    (path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(folder: Path, out: Path, *extra: str, whole: bool = False):
    """The command; whole: with what the root command makes of errors and interruptions."""
    options = ["--data", str(folder / "data.jsonl"), "--out", str(out), "--device", "cpu", "--report-every", "5"]
    command = ["eagle", "-m", str(folder), *options, *extra]
    return CliRunner().invoke(root, ["train", *command]) if whole else CliRunner().invoke(app, command)


@pytest.mark.parametrize("answers", ["target", "data"])
def test_a_head_is_trained_used_and_resumed(answers, folder, tmp_path):
    options = ("--answers", answers, "--answer-tokens", "12", "--steps", "10", "--learning-rate", "1e-3")
    done = run(folder, tmp_path, *options)
    assert done.exit_code == 0, done.output
    assert f"--draft {tmp_path}" in done.stdout
    assert re.search(r"step 10 loss .* top-1 .* min left; held-out top-1 by depth: ", done.stderr)
    assert re.search(r"it would (not )?pay here.* times plain's speed with a (chain|tree) of \d", done.stderr)
    assert json.loads((tmp_path / "training.json").read_text())["step"] == 10
    model = slipstream.load(folder, "eagle2", draft=tmp_path, dtype="float64", device="cpu", width=3, depth=3, total=8)
    plain = slipstream.load(folder, "plain", dtype="float64", device="cpu")
    texts = [one.generate(TALK[0], max_new_tokens=20, temperature=0).token_ids for one in (model, plain)]
    assert texts[0] == texts[1]
    again = run(folder, tmp_path, *options)
    assert again.exit_code == 0
    assert "resumed at step 10" in again.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_after_its_step_and_the_command_goes_on(number, code, folder, tmp_path, monkeypatch):
    options = ("--answers", "data", "--steps", "8")
    whole = run(folder, tmp_path / "whole", *options)
    assert whole.exit_code == 0, whole.output
    whole_step = HeadRun.train_step

    def interrupted(self, batch):
        done = whole_step(self, batch)
        if self.step == 2:
            os.kill(os.getpid(), number)
        return done

    monkeypatch.setattr(HeadRun, "train_step", interrupted)
    before = signal.getsignal(number)
    done = run(folder, tmp_path / "parts", *options, whole=True)
    assert done.exit_code == code
    assert f"saved at step 3 of 8 in {tmp_path / 'parts'}; the same command goes on from there" in done.stderr
    assert signal.getsignal(number) is before
    monkeypatch.undo()
    again = run(folder, tmp_path / "parts", *options)
    assert again.exit_code == 0, again.output
    assert "resumed at step 3" in again.stderr
    tensors = (load_file(tmp_path / part / "model.safetensors") for part in ("whole", "parts"))
    assert len({tensor["fc.weight"].numpy().tobytes() for tensor in tensors}) == 1


def test_a_run_in_parts_of_some_minutes(folder, tmp_path):
    options = ("--answers", "data", "--steps", "2", "--minutes", "0")
    done = run(folder, tmp_path, *options)
    assert done.exit_code == 0, done.output
    assert "saved at step 1 of 2" in done.stderr
    assert "use it with" not in done.stdout
    again = run(folder, tmp_path, *options)
    assert "use it with" in again.stdout


def test_answers_as_token_ids_are_trained_on(folder, tmp_path):
    lines = [{"prompt_ids": [5, 6, 7], "ids": [8, 9, 10 + n, 11, 2]} for n in range(20)]
    data = tmp_path / "answers.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--data", str(data), "--out", str(tmp_path / "head"), "--device", "cpu", "--steps", "2"]
    done = CliRunner().invoke(app, ["eagle", "-m", str(folder), *options, "--answers", "data"])
    assert done.exit_code == 0, done.output
    assert "20 dialogues of 160 tokens" in done.stderr
    refused = CliRunner().invoke(app, ["eagle", "-m", str(folder), *options])
    assert "add --answers data" in str(refused.exception)


def test_a_lower_priority_is_asked_of_the_system(folder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "nice", asked.append)
    assert run(folder, tmp_path, "--answers", "data", "--steps", "1", "--nice", "19").exit_code == 0
    assert asked == [19]


def test_bad_options_are_one_clear_line(folder, tmp_path):
    for extra, message in (
        (("--answers", "mine"), "unknown answers 'mine'"),
        (("--answers", "data", "--max-length", "3"), "no answer within 3 tokens"),
        (("--precision", "fp8"), "unknown precision 'fp8'"),
        (("--device", "cuda:7"), "CUDA_VISIBLE_DEVICES"),
    ):
        done = run(folder, tmp_path, *extra)
        assert isinstance(done.exception, InputError)
        assert message in str(done.exception)
