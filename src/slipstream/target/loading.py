"""Loading a target and its tokenizer from a hub id, a folder or a name of ours; every failure is one clear line."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
)

from slipstream.errors import ArtifactError, InputError, UnsupportedTargetError
from slipstream.files.packaged import SMOLLM2, TINY
from slipstream.target.adapters import adapter_base, with_adapter
from slipstream.target.dtypes import cpu_multiplies_bfloat16, faster_dtype, resolve_dtype
from slipstream.target.families import other_masks, refuse_class
from slipstream.target.sharding import arguments, begin, check_heads
from slipstream.target.source import Source, find_source

logger = logging.getLogger(__name__)

_ATTENTION = ("sdpa", "eager")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "tiktoken.model",
)
_LOADING_ERRORS = (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError)


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or CUDA where there is one, else the CPU. Raises InputError if it is not there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"unknown device {str(device)!r}; use cpu, cuda or cuda:N") from error
    if wanted.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (wanted.index or 0) >= count:
            found = f"only {count} CUDA device(s)" if count else "no CUDA device"
            raise InputError(f"device {str(device)!r} was asked for, but torch finds {found} here; use device='cpu'")
    return wanted


def load_model(
    source: str | Path,
    *,
    dtype: str | torch.dtype | None,
    device: str | torch.device | None,
    attention: str | None,
    tp_size: int | None = None,
) -> PreTrainedModel:
    """A causal language model with all its weights, in evaluation mode.

    device: also "auto", which spreads the weights as `device_map="auto"` does. Raises ArtifactError for missing or
    damaged files, UnsupportedTargetError for an attention implementation that takes no tree mask and for a model that
    cannot work, before its weights are read. An adapter of PEFT is put into the model that it was made for.
    tp_size: processes that share the weights, all of which call this.
    """
    if attention is not None and attention not in _ATTENTION:
        raise UnsupportedTargetError(f"attention {attention!r} cannot verify draft trees: {other_masks(attention)}")
    wanted = resolve_dtype(dtype)
    place = begin(tp_size, device) if tp_size is not None else None if device == "auto" else resolve_device(device)
    found = find_source(source)
    if (base := adapter_base(found)) is not None:
        if tp_size is not None:
            raise UnsupportedTargetError(f"{found.name} is an adapter, which no sharded model takes; merge it first")
        return with_adapter(load_model(base, dtype=dtype, device=device, attention=attention), found)
    if wanted is None and place is not None and place.type == "cpu":
        wanted = _dtype_on_cpu(found.name)
    config = _loading(found, AutoConfig.from_pretrained)
    if tp_size is not None:
        check_heads(config, tp_size, found.name)
    auto = _auto_class(config, found.name)
    if attention is None and getattr(config.get_text_config(), "attn_logit_softcapping", None):
        attention = "eager"  # sdpa leaves the soft-cap out
    with _without_load_report():
        model, info = _loading(
            found,
            auto.from_pretrained,
            config=config,
            dtype=wanted or "auto",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told by name below
            **({} if attention is None else {"attn_implementation": attention}),
            **({"device_map": "auto"} if device == "auto" else {}),
            **({} if tp_size is None else arguments(tp_size)),
        )
    _check_tensors(found.name, info)
    loaded: PreTrainedModel = model if place is None or tp_size is not None else model.to(place)
    if loaded.dtype == torch.float64 and hasattr(loaded, "set_experts_implementation"):
        loaded.set_experts_implementation("eager")  # grouped kernels have no float64
    if wanted is None and logger.isEnabledFor(logging.INFO) and (faster := faster_dtype(loaded)):
        logger.info("%s: %s", found.name, faster)
    return loaded


def _auto_class(config: Any, name: str) -> Any:
    """The class of transformers that loads a model for text, by preference the one that the checkpoint names.

    Raises UnsupportedTargetError where there is none, or where it cannot work whatever the weights.
    """
    loaders = (AutoModelForCausalLM, AutoModelForImageTextToText)
    kinds = {auto: auto._model_mapping[type(config)] for auto in loaders if type(config) in auto._model_mapping}
    if not kinds:
        raise UnsupportedTargetError(
            f"{name} is a {config.model_type!r} model, for which transformers has no class that continues text"
        )
    named = getattr(config, "architectures", None) or ()
    auto = next((one for one, kind in kinds.items() if kind.__name__ in named), next(iter(kinds)))
    refuse_class(kinds[auto], config, name)
    return auto


def _dtype_on_cpu(name: str) -> torch.dtype | None:
    """For the models that we know; None: as saved. Both are saved as bfloat16, which rounds more than float32."""
    if name == SMOLLM2 and cpu_multiplies_bfloat16():
        return torch.bfloat16  # reads half the bytes, and is faster where there are instructions for it
    return torch.float32 if name in (TINY, SMOLLM2) else None


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Without transformers' table of the tensors that do not fit: `_check_tensors` says it in a line."""
    reporter = logging.getLogger("transformers.modeling_utils")

    def is_no_report(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    reporter.addFilter(is_no_report)
    try:
        yield
    finally:
        reporter.removeFilter(is_no_report)


def _check_tensors(source: str | Path, info: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that does not hold every tensor of the model in its size; tell of tensors left over."""
    if missing := sorted(info["missing_keys"]):
        raise ArtifactError(
            f"{source} lacks {len(missing)} of the model's tensors, the first is {missing[0]!r}; the checkpoint is "
            "incomplete or for another architecture"
        )
    if mismatched := sorted(info["mismatched_keys"]):
        name, found, wanted = mismatched[0]
        raise ArtifactError(
            f"{source} holds {len(mismatched)} tensors of another size than its config.json says, the first is "
            f"{name!r}: {list(found)}, not {list(wanted)}; the two do not belong together"
        )
    if unexpected := sorted(info["unexpected_keys"]):
        logger.warning(
            "%s holds %d tensors that the model does not use, the first is %r", source, len(unexpected), unexpected[0]
        )


def find_tokenizer(source: str | Path) -> Any:
    """The tokenizer that belongs to a model; None for a folder without one, or an adapter whose model has none.

    Raises ArtifactError for one that is damaged.
    """
    found = find_source(source)
    base = adapter_base(found)
    folder = Path(found.place)
    if not folder.is_dir() or any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return _tokenizer(found)
    return None if base is None else find_tokenizer(base)


def load_tokenizer(source: str | Path) -> Any:
    """The tokenizer that belongs to a model. Raises ArtifactError where there is none."""
    return _tokenizer(find_source(source))


def _tokenizer(found: Source) -> Any:
    return _loading(found, AutoTokenizer.from_pretrained, what="the tokenizer of ")


def _loading(source: Source, load: Any, *, what: str = "", **kwargs: Any) -> Any:
    """Call a loader of transformers; its many errors become one line that names the source, or `what` of it."""
    try:
        return load(source.place, local_files_only=source.offline, **kwargs)
    except SafetensorError as error:
        raise ArtifactError(
            f"the weights in {source.name} are damaged or cut off ({error}); fetch them again"
        ) from error
    except _LOADING_ERRORS as error:
        if source.offline and isinstance(error, OSError):
            raise ArtifactError(source.not_found) from error
        reason = shorten(str(error), 300) or type(error).__name__
        raise ArtifactError(f"cannot load {what}{source.name}: {reason}") from error
