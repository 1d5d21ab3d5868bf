"""`slipstream train eagle3` from a model folder and a data file to a head that `auto` finds and others can read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import slipstream
from families import build
from slipstream.cli.app import app
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
    model = build("llama", num_hidden_layers=3, vocab_size=300, weight_std=0.2).float()
    model.generation_config.eos_token_id = 2
    model.save_pretrained(path)
    lines = [{"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": t[::-1]}]} for t in TALK]
    (path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_head_is_trained_used_resumed_and_exported(folder, tmp_path):
    out = tmp_path / "head"
    options = ["--data", str(folder / "data.jsonl"), "--out", str(out), "--device", "cpu", "--report-every", "5"]
    train = ["train", "eagle3", "-m", str(folder), *options, "--answers", "data", "--steps", "6", "--steps-ahead", "3"]
    train += ["--draft-vocabulary", "60", "--layer", "1", "--layer", "2"]
    done = CliRunner().invoke(app, train)
    assert done.exit_code == 0, done.output
    assert f"-d eagle3 --draft {out}" in done.stdout
    assert re.search(r"step 6 loss .* held-out top-1 by depth: ", done.stderr)
    assert re.search(r"it would (not )?pay here", done.stderr)
    record = json.loads((out / "config.json").read_text())
    assert "calibration" in record["slipstream"]
    assert record["draft_vocab_size"] <= 60
    again = CliRunner().invoke(app, train)
    assert "resumed at step 6" in again.stderr

    written = tmp_path / "written"
    export = [
        "heads",
        "export",
        "-m",
        str(folder),
        "--draft",
        str(out),
        "--format",
        "speculators",
        "--out",
        str(written),
    ]
    done = CliRunner().invoke(app, export)
    assert done.exit_code == 0, done.output
    plain = slipstream.load(folder, "plain", dtype="float64", device="cpu")
    expected = plain.generate(TALK[0], max_new_tokens=16, temperature=0).token_ids
    for head in (out, written):
        model = slipstream.load(folder, draft=head, dtype="float64", device="cpu", width=3, depth=3, total=8)
        assert model.method == "eagle3"
        assert model.drafter.head.sizes.states == (1, 2)
        assert model.generate(TALK[0], max_new_tokens=16, temperature=0).token_ids == expected
