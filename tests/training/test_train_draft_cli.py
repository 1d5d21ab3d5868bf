"""`slipstream train draft` from a model folder and a data file to a draft model that `-d draft-model` uses."""

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
TINY = ("--hidden-size", "16", "--num-layers", "1", "--num-heads", "2", "--num-kv-heads", "1")


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
    build("llama", vocab_size=300, weight_std=0.2).float().save_pretrained(path)
    lines = [{"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": t[::-1]}]} for t in TALK]
    (path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(folder: Path, out: Path, *extra: str):
    options = ["--data", str(folder / "data.jsonl"), "--out", str(out), "--device", "cpu", "--report-every", "5"]
    return CliRunner().invoke(app, ["draft", "-m", str(folder), *options, *TINY, "--answers", "data", *extra])


def test_a_draft_model_is_trained_used_and_resumed(folder, tmp_path):
    done = run(folder, tmp_path, "--steps", "10")
    assert done.exit_code == 0, done.output
    assert f"-d draft-model --draft {tmp_path}" in done.stdout
    assert re.search(r"step 10 loss .* top-1 .* min left; held-out top-1 by depth: ", done.stderr)
    assert re.search(r"it would (not )?pay here.* times plain's speed with a (chain|tree) of \d", done.stderr)
    assert "shared tensor" not in done.stderr
    assert (tmp_path / "tokenizer.json").is_file()
    plain = slipstream.load(folder, "plain", dtype="float64", device="cpu")
    wanted = plain.generate(TALK[0], max_new_tokens=20, temperature=0).token_ids
    for options in ({"width": 3, "depth": 3, "total": 8}, {"tree": "chain", "length": 4}):
        model = slipstream.load(folder, "draft-model", draft=tmp_path, dtype="float64", device="cpu", **options)
        assert model.generate(TALK[0], max_new_tokens=20, temperature=0).token_ids == wanted
    again = run(folder, tmp_path, "--steps", "10")
    assert again.exit_code == 0
    assert "resumed at step 10" in again.stderr


def test_bad_options_are_one_clear_line(folder, tmp_path):
    for extra, message in (
        (("--embeddings", "mine"), "unknown embeddings 'mine'"),
        (("--hidden-size", "18"), "hidden_size 18 must be a multiple"),
    ):
        done = run(folder, tmp_path, *extra)
        assert isinstance(done.exception, InputError)
        assert message in str(done.exception)
