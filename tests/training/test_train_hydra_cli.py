"""`slipstream train hydra` from a model folder and a data file to heads that `-d hydra` uses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import slipstream
from families import build
from slipstream.cli.train import app
from slipstream.errors import InputError
from slipstream.training.data.tokenizer import save_tokenizer, train_tokenizer

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


def run(folder: Path, out: Path, *extra: str):
    options = ["--data", str(folder / "data.jsonl"), "--out", str(out), "--device", "cpu", "--report-every", "5"]
    return CliRunner().invoke(app, ["hydra", "-m", str(folder), *options, *extra])


@pytest.mark.parametrize(
    ("form", "file"),
    [
        (("--no-prefix", "--layers", "1", "--answers", "data"), "hydra_lm_head.pt"),
        (("--heads", "2", "--shared-lm-head", "--prefix-size", "24", "--storage", "bf16"), "model.safetensors"),
    ],
)
def test_heads_are_trained_used_and_resumed(form, file, folder, tmp_path):
    options = ("--answer-tokens", "12", "--steps", "10", "--learning-rate", "1e-3", *form)
    done = run(folder, tmp_path, *options)
    assert done.exit_code == 0, done.output
    assert f"-d hydra --draft {tmp_path}" in done.stdout
    assert re.search(r"step 10 loss .*head_0 .* top-1 .* min left; held-out top-1 by depth: ", done.stderr)
    assert re.search(r"it would (not )?pay here.* times plain's speed with a (chain|tree) of \d", done.stderr)
    assert (tmp_path / file).is_file()
    model = slipstream.load(folder, "hydra", draft=tmp_path, dtype="float64", device="cpu", width=3, depth=2, total=8)
    plain = slipstream.load(folder, "plain", dtype="float64", device="cpu")
    texts = [one.generate(TALK[0], max_new_tokens=20, temperature=0).token_ids for one in (model, plain)]
    assert texts[0] == texts[1]
    again = run(folder, tmp_path, *options)
    assert again.exit_code == 0
    assert "resumed at step 10" in again.stderr


def test_bad_options_are_one_clear_line(folder, tmp_path):
    for extra, message in (
        (("--heads", "0"), "num_heads is 0"),
        (("--dropout", "1"), "dropout is 1.0; it must be below 1"),
        (("--storage", "int8"), "unknown storage 'int8'"),
        (("--no-prefix", "--prefix-size", "8"), "needs the prefix layer"),
        (("--answers", "mine"), "unknown answers 'mine'"),
    ):
        done = run(folder, tmp_path, *extra)
        assert isinstance(done.exception, InputError)
        assert message in str(done.exception)
