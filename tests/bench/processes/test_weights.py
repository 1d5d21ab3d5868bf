"""The GGUF file that llama.cpp is given holds the very bits of our target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from slipstream.bench.processes.weights import smollm2_gguf, write_dequantised
from slipstream.target import smollm2

gguf = pytest.importorskip("gguf", reason="GGUF files are read with gguf: pip install gguf")

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEADS = {"attn_q": 9, "attn_k": 3}


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A file with a matrix of 4-bit blocks, one of 8-bit blocks and a vector."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(tmp_path / "packed.gguf", "llama")
    writer.add_block_count(2)
    writer.add_array("tokenizer.ggml.tokens", ["a", "ä", "<|end|>"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_1)
    for name, kind in (("four", "Q4_1"), ("eight", "Q8_0")):
        kind = gguf.GGMLQuantizationType[kind]
        values = rng.normal(size=(3, 64)).astype(np.float32)
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.add_tensor("vector", rng.normal(size=5).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "packed.gguf"


def values_of(tensor) -> torch.Tensor:
    """A written tensor in bfloat16; its matrices are so in the file or hold such values."""
    found = torch.tensor(tensor.data)
    if tensor.tensor_type == gguf.GGMLQuantizationType.BF16:
        return found.view(torch.bfloat16)
    assert torch.equal(found.to(torch.bfloat16).to(torch.float32), found)
    return found.to(torch.bfloat16)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_all_tensors_are_unpacked_and_rounded_and_the_rest_is_as_it_was(packed: Path, tmp_path: Path, dtype) -> None:
    write_dequantised(packed, tmp_path / "out.gguf", dtype)
    before, after = (gguf.GGUFReader(path) for path in (packed, tmp_path / "out.gguf"))
    assert [one.name for one in after.tensors] == ["four", "eight", "vector"]
    kinds = {"bfloat16": ["BF16", "BF16", "F32"], "float32": ["F32"] * 3}
    assert [one.tensor_type.name for one in after.tensors] == kinds[dtype]
    for old, new in zip(before.tensors, after.tensors, strict=True):
        expected = torch.tensor(gguf.dequantize(old.data, old.tensor_type)).to(torch.bfloat16)
        assert torch.equal(values_of(new), expected)
    assert after.fields["llama.block_count"].contents() == 2
    assert after.fields["tokenizer.ggml.tokens"].contents() == ["a", "ä", "<|end|>"]
    assert after.fields["general.file_type"].contents() == {"bfloat16": 32, "float32": 0}[dtype]


def test_it_is_made_once_and_kept(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "source_file", lambda: packed)
    said: list[str] = []
    path = smollm2_gguf("bfloat16", said.append)
    assert path.is_relative_to(tmp_path / "no-cache")
    assert said == ["writing smollm2 as GGUF in bfloat16, once"]
    monkeypatch.setattr(smollm2, "source_file", lambda: pytest.fail("made again"))
    assert smollm2_gguf("bfloat16", said.append) == path
    path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.setattr(smollm2, "source_file", lambda: packed)
    smollm2_gguf("bfloat16", said.append)
    assert "the kept file is cut off or altered" in said[-1]
    assert len(gguf.GGUFReader(path).tensors) == 3


def test_smollm2_has_the_very_bits_of_our_target(converted_smollm2: Path, tmp_path: Path) -> None:
    write_dequantised(smollm2.source_file(), tmp_path / "out.gguf", "bfloat16")
    found = gguf.GGUFReader(tmp_path / "out.gguf").tensors
    with safe_open(converted_smollm2 / "model.safetensors", "pt") as ours:
        assert len(found) == len(list(ours.keys()))
        for one in found:
            expected = in_llama_cpp_s_order(one.name, ours.get_tensor(our_name(one.name)))
            assert torch.equal(values_of(one).view(torch.int16), expected.view(torch.int16)), one.name


def our_name(name: str) -> str:
    first, *rest = name.split(".")
    if first == "blk":
        return f"model.layers.{rest[0]}.{_LAYER[rest[1]]}.weight"
    return {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[first]


def in_llama_cpp_s_order(name: str, ours: torch.Tensor) -> torch.Tensor:
    """Rows of queries and keys as llama.cpp has them: it rotates neighbours, transformers the two halves of a head."""
    heads = _HEADS.get(name.split(".")[2]) if name.startswith("blk") else None
    if heads is None:
        return ours
    rows, columns = ours.shape  # [rows, hidden]
    return ours.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)
