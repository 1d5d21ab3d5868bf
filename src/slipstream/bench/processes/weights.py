"""SmolLM2 for llama.cpp: its GGUF file as it is, and one of the very values that our target has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from slipstream.files.cache_folder import cache_folder
from slipstream.files.kept_folder import MISSING, KeptFolder
from slipstream.target import smollm2

FORMAT = 1
"""Of the written file; a change of how it is written raises it, and older files are made anew."""
_BYTES = {"bfloat16": 275_000_000, "float32": 545_000_000}
_NAMES_OF_THE_FILE = ("general.architecture", "general.file_type", "general.quantization_version")
"""Entries that the writer makes itself, or that speak of blocks."""


def smollm2_gguf(dtype: str, report: Callable[[str], None]) -> Path:
    """A GGUF file of SmolLM2 in bfloat16 or float32, with the values of our target: made once, kept in the cache.

    report: told of each step. Raises as `smollm2.source_file` and `KeptFolder.make` do.
    """
    origin = {"model": smollm2.NAME, "format": FORMAT, "sha256": smollm2.SHA256, "dtype": dtype}
    kept = KeptFolder(cache_folder() / "models" / f"{smollm2.NAME}-gguf-{dtype}", origin)
    if (flaw := kept.flaw()) is not None:
        report(f"writing smollm2 as GGUF in {dtype}, once" + ("" if flaw == MISSING else f": the kept file is {flaw}"))
        kept.make(partial(_write, dtype=dtype), num_bytes=_BYTES[dtype])
    return kept.path / _file_name(dtype)


def _file_name(dtype: str) -> str:
    return f"{smollm2.NAME}.{dtype}.gguf"


def _write(folder: Path, dtype: str) -> None:
    write_dequantised(smollm2.source_file(), folder / _file_name(dtype), dtype)


def write_dequantised(source: Path, out: Path, dtype: str) -> None:
    """Write a GGUF file anew with every tensor unpacked and rounded to bfloat16, as our conversion of SmolLM2 does.

    dtype: in which matrices are written, bfloat16 or float32: the same values. Vectors are float32 in either case, as
    llama.cpp has them.
    """
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in _NAMES_OF_THE_FILE:
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)
    kind = gguf.LlamaFileType.MOSTLY_BF16 if dtype == "bfloat16" else gguf.LlamaFileType.ALL_F32
    writer.add_file_type(kind)
    for tensor in reader.tensors:
        values = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type)).to(torch.bfloat16)
        if dtype == "bfloat16" and values.dim() > 1:
            writer.add_tensor(tensor.name, values.view(torch.uint8).numpy(), raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(tensor.name, values.to(torch.float32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
