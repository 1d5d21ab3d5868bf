"""The target's weights as other software reads them: SmolLM2 as GGUF for llama.cpp, any model for OpenVINO."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from slipstream.bench.processes.process import environment_of_others
from slipstream.errors import InputError
from slipstream.files.cache_folder import cache_folder
from slipstream.files.kept_folder import MISSING, KeptFolder
from slipstream.target import smollm2
from slipstream.target.adapters import adapter_base
from slipstream.target.source import find_source
from slipstream.target.target import Target

FORMAT = 1
"""Of what is written; a change of how that is done raises it, and older files are made anew."""
_EXPORT = "from optimum.commands.optimum_cli import main; main()"
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


def openvino_folder(model: str, target: Target, python: str, report: Callable[[str], None]) -> Path:
    """A model as OpenVINO reads it, exported once by optimum-intel and kept in the cache.

    model: as the user calls it. python: one that has optimum-intel. report: told of each step. All values are those of
    the target, written as float32. Raises InputError where the export fails, or where nothing can be written.
    """
    kept = KeptFolder(cache_folder() / "models" / f"openvino-{target.hash}", {"target": target.hash, "format": FORMAT})
    if (flaw := kept.flaw()) is not None:
        report(f"exporting {model} for OpenVINO, once" + ("" if flaw == MISSING else f": what was kept is {flaw}"))
        num_bytes = 4 * target.model.num_parameters() + 50_000_000
        kept.make(partial(_export, model=model, python=python), num_bytes=num_bytes)
    return kept.path


def _export(folder: Path, model: str, python: str) -> None:
    source = find_source(model)
    if adapter_base(source) is not None:
        raise InputError(f"openvino: {model} is an adapter; merge it into its model first")
    command = [python, "-c", _EXPORT, "export", "openvino", "--task", "text-generation-with-past"]
    command += ["--weight-format", "fp32", "--model", str(source.place), str(folder)]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        env=environment_of_others(),
        check=False,
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise InputError(f"openvino: optimum-intel cannot export {model}: {lines[-1].strip()}")
