"""Bad input, end to end on a tiny model on disk: one clear line on stderr, exit code 2, nothing on stdout."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from slipstream.cli.app import app
from slipstream.methods.eagle.checkpoint import save_head
from slipstream.methods.eagle.head import EagleHead, HeadSizes
from slipstream.skipping.skip_set import SkipSet
from slipstream.target.loading import load_model
from slipstream.target.target import Target

CONTEXT, NUM_LAYERS = 64, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as `save_pretrained` writes it: random weights, one token a byte, a chat template."""
    path = tmp_path_factory.mktemp("tiny")
    vocab = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    fast.save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder to damage."""
    return Path(shutil.copytree(folder, tmp_path / "model"))


@pytest.fixture
def refused(cli, folder):
    """Run `generate` and return the one line that it must be refused with."""

    def run(*arguments: object, model: object = folder, prompt: str = "Hello") -> str:
        done = cli("generate", "-m", model, "-p", prompt, "-n", 4, "--device", "cpu", *arguments)
        assert (done.exit_code, done.stdout) == (2, ""), done.output
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        return done.stderr

    return run


def test_good_input_is_not_refused(cli, folder):
    done = cli("generate", "-m", folder, "-p", "Hello", "-n", 4, "--device", "cpu", "--json")
    assert done.exit_code == 0, done.output


def test_unknown_method_suggests_the_nearest(refused):
    assert "Did you mean 'layer-skip'?" in refused("-d", "layerskip")


def test_an_unknown_runtime_is_noticed_before_the_model_is_loaded(refused, tmp_path):
    assert "unknown runtime 'compild'" in refused("--runtime", "compild", model=tmp_path / "nowhere")


def test_a_mistyped_method_is_noticed_before_the_model_is_loaded(refused, tmp_path):
    assert "unknown method 'plian'" in refused("-d", "plian", model=tmp_path / "nowhere")


def test_folder_without_weights(refused, copy):
    (copy / "model.safetensors").unlink()
    assert str(copy) in refused(model=copy)


def test_folder_that_is_no_model(refused, tmp_path):
    assert "config.json" in refused(model=tmp_path)


def test_folder_that_does_not_exist(refused, tmp_path):
    assert f"there is no folder {tmp_path / 'nowhere'}" in refused(model=tmp_path / "nowhere")


def test_truncated_safetensors(refused, copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    line = refused(model=copy)
    assert str(copy) in line
    assert "cut off" in line


def test_missing_tensor(refused, copy):
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in refused(model=copy)
    command = [sys.executable, "-m", "slipstream", "generate", "-m", str(copy), "-p", "x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr.count("\n") == 1, "transformers' own report stands before the line"


def test_config_of_another_size(refused, copy):
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps(config | {"intermediate_size": 25}), encoding="utf-8")
    line = refused(model=copy)
    assert "'model.layers.0.mlp.down_proj.weight': [16, 24], not [16, 25]" in line


def test_damaged_tokenizer(refused, copy):
    tokenizer = copy / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes()[:1000])
    assert f"cannot load the tokenizer of {copy}" in refused(model=copy)


def test_folder_without_a_tokenizer(refused, copy):
    for file in (*copy.glob("tokenizer*"), *copy.glob("chat_template*")):
        file.unlink()
    assert "holds no tokenizer, which commands need" in refused(model=copy)


def test_tensors_left_over_are_told_but_harmless(cli, copy, caplog):
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    tensors["unknown.weight"] = torch.zeros(3)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert cli("generate", "-m", copy, "-p", "Hello", "-n", 4, "--device", "cpu").exit_code == 0
    assert "1 tensors that the model does not use, the first is 'unknown.weight'" in caplog.text


@pytest.mark.parametrize("layer", [1, 20])
def test_skip_set_for_another_depth(refused, tmp_path, layer):
    file = tmp_path / "set.json"
    SkipSet(num_layers=24, attention=(layer,), mlp=()).save(file)
    assert f"has {NUM_LAYERS} " in refused("--skip-set", file)


def test_skip_set_that_is_missing(refused, tmp_path):
    assert "set.json" in refused("--skip-set", tmp_path / "set.json")


@pytest.mark.parametrize("method", ["eagle2", "eagle"])
def test_artefact_of_another_hidden_size(refused, folder, tmp_path, method):
    target = Target(load_model(folder, dtype=None, device="cpu", attention=None))
    wide = HeadSizes(hidden_size=32, embedding_size=32, intermediate_size=24, num_heads=2, num_kv_heads=2, head_dim=16)
    save_head(EagleHead(wide), tmp_path / "head", target)
    line = refused("-d", method, "--draft", tmp_path / "head")
    assert "32" in line
    assert f"{target.config.hidden_size}" in line


def test_artefact_that_is_missing(refused, tmp_path):
    assert "needs an EAGLE head" in refused("-d", "eagle2")
    assert f"there is no folder '{tmp_path / 'head'}'" in refused("-d", "eagle2", "--draft", tmp_path / "head")


def test_option_of_another_method(refused, tmp_path):
    assert "skip_set" in refused("-d", "plain", "--skip-set", tmp_path / "set.json")


def test_prompt_longer_than_the_context(refused):
    line = refused(prompt="x" * 100)
    assert "100 tokens" in line
    assert f"context is {CONTEXT}" in line


def test_empty_prompt(refused):
    assert "the prompt is empty" in refused(prompt="")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--temperature", -0.5),
        ("--top-p", 1.5),
        ("--top-k", -1),
        ("--min-p", 2),
        ("--repetition-penalty", 0),
        ("--seed", -1),
        ("--width", 0),
        ("--total", "auto:many"),
        ("--dtype", "float31"),
        ("--verification", "lossy"),
        ("--tree", "oak"),
    ],
)
def test_setting_out_of_range(refused, option, value):
    arguments = (option, value) if option != "--top-p" else (option, value, "-t", 1)
    assert str(value) in refused("-d", "layer-skip", *arguments)


def test_budget_of_no_tokens(refused):
    assert "max_new_tokens is 0" in refused("-n", 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_asked_for_and_absent(refused):
    assert "no CUDA device" in refused("--device", "cuda")


def test_flash_attention_asked_for(refused):
    assert "sdpa or eager" in refused("--attention", "flash_attention_2")


def test_real_process_refuses_in_one_line_without_a_traceback(folder):
    command = [sys.executable, "-m", "slipstream", "generate", "-m", str(folder), "-p", "x", "-t", "-1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: temperature is -1")
    assert done.stderr.count("\n") == 1


def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(copy):
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = 1_000_000  # so that answers would go on for minutes
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    command = [sys.executable, "-m", "slipstream", "chat", "-m", str(copy), "-n", "900000", "--device", "cpu"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    heeding = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # a job in the background ignores it
    with subprocess.Popen(command, text=True, encoding="utf-8", **pipes, **heeding) as chat:
        for message in ("Hello", "Again"):
            chat.stdin.write(message + "\n")
            chat.stdin.flush()
            assert len(chat.stdout.read(20)) == 20
            chat.send_signal(signal.SIGINT)
        rest, notes = chat.communicate("/stats\n", timeout=60)
    assert (chat.returncode, notes.count("interrupted"), notes.count("no answers yet")) == (0, 2, 1), notes
    assert rest.endswith("\n")


WRITING = {
    "answer": ("file", ["--in", "FILE"]),
    "bench merge": ("file", ["RUN"]),
    "bench report": ("file", ["RUN"]),
    "bench run": ("folder", ["-m", "tiny"]),
    "certify": ("file", ["-m", "tiny"]),
    "heads export": ("folder", ["-m", "tiny", "--format", "eagle"]),
    "heads vocabulary": ("folder", ["-m", "tiny", "--data", "FILE"]),
    "skip search": ("file", ["-m", "tiny", "--task", "code"]),
    "train answers": ("file", ["-m", "tiny", "--data", "FILE"]),
    "train draft": ("folder", ["-m", "tiny", "--data", "FILE"]),
    "train eagle": ("folder", ["-m", "tiny", "--data", "FILE"]),
    "train eagle3": ("folder", ["-m", "tiny", "--data", "FILE"]),
    "train hydra": ("folder", ["-m", "tiny", "--data", "FILE"]),
    "train medusa": ("folder", ["-m", "tiny", "--data", "FILE"]),
    "train target": ("folder", ["--data", "FOLDER"]),
    "train demo": ("folder", ["--data", "FOLDER", "--work", "FOLDER"]),
    "train pack": ("file", ["--data", "FOLDER", "--work", "FOLDER"]),
}
"""Commands with --out, what it names, and what else they need."""


@pytest.mark.parametrize("command", WRITING)
def test_a_place_that_cannot_be_written_is_refused_before_any_work(cli, tmp_path, monkeypatch, command):
    kind, others = WRITING[command]
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("{}\n")
    folder.mkdir()
    given = [{"FILE": file, "FOLDER": folder, "RUN": folder}.get(one, one) for one in others]
    wrong = {
        file if kind == "folder" else folder: f"is a {'file' if kind == 'folder' else 'folder'}; name a {kind}",
        file / "below" / "deeper": f"lies below {file}, which is a file",
    }
    for out, reason in wrong.items():
        done = cli(*command.split(), *given, "--out", out)
        assert (done.exit_code, done.stdout) == (2, ""), done.output
        assert done.stderr.startswith(f"error: --out {out} {reason}")
        assert done.stderr.count("\n") == 1
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    done = cli(*command.split(), *given, "--out", tmp_path / "new")
    assert (
        done.stderr
        == f"error: --out {tmp_path / 'new'} cannot be written: {tmp_path} is not writable; name another place\n"
    )


def test_every_command_that_writes_is_tested():
    """An --out that is not looked at before the work would be noticed after it."""
    found = []

    def look(command: object, name: str) -> None:
        for inner_name, inner in getattr(command, "commands", {}).items():
            look(inner, f"{name} {inner_name}".strip())
        if any("--out" in one.opts for one in getattr(command, "params", ())):
            found.append(name)

    look(typer.main.get_command(app), "")
    assert sorted(found) == sorted(WRITING)


def test_a_place_that_turns_out_unwritable_is_one_line(cli, monkeypatch, tmp_path):
    def fail(*arguments: object, **settings: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "x"))

    monkeypatch.setattr("slipstream.load", fail)
    done = cli("generate", "-m", "tiny", "-p", "Hi")
    assert (done.exit_code, done.stderr) == (2, f"error: cannot write {tmp_path / 'x'}: Permission denied\n")
