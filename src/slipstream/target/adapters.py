"""Models in wrappers: PEFT adapters, and what `torch.compile` returns. What computes the same inside is used."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from slipstream.errors import ArtifactError, InputError, UnsupportedTargetError, first_line
from slipstream.target.source import ADAPTER_CONFIG, Source

_OWN_FORWARD = ("XLORA", "POLY")
"""Kinds of adapters of which PEFT's wrapper does more than run the model inside it."""


def unwrapped(model: Any) -> PreTrainedModel:
    """The model of transformers that a caller's object is or wraps. Raises InputError for what is neither.

    `torch.compile` changes how a model is run, not what it computes; our passes have other shapes and run it as it is.
    """
    if isinstance(model, nn.Module) and "_orig_mod" in model._modules:
        return unwrapped(model._modules["_orig_mod"])
    peft: Any = sys.modules.get("peft")
    if peft is not None and isinstance(model, peft.PeftModel):
        return unwrapped(_inside_adapter(model))
    if isinstance(model, PreTrainedModel):
        return model
    inner = getattr(model, "module", None) or getattr(model, "model", None)
    hint = "; give the model inside it" if isinstance(inner, nn.Module) else ""
    raise InputError(
        f"model is a {type(model).__name__}; give a hub id, a folder or a causal language model of transformers{hint}"
    )


def _inside_adapter(wrapper: Any) -> Any:
    """The model with its adapters in place. Raises UnsupportedTargetError where the wrapper adds to it."""
    config = wrapper.active_peft_config
    kind = str(config.peft_type).rpartition(".")[2]
    if config.is_prompt_learning or kind in _OWN_FORWARD or getattr(config, "alora_invocation_tokens", None):
        raise UnsupportedTargetError(
            f"this PEFT adapter ({kind}) is no change of weights alone, so the model inside its wrapper is another "
            "one; adapters such as LoRA work"
        )
    return wrapper.get_base_model()


def adapter_base(source: Source) -> str | None:
    """The model that a folder's adapter was made for; None for a folder that holds none, and for a hub id."""
    file = Path(source.place) / ADAPTER_CONFIG
    if not file.is_file():
        return None
    try:
        base = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file} is not the configuration of a PEFT adapter ({first_line(error)})") from error
    if not isinstance(base, str) or not base:
        raise ArtifactError(
            f"{file} names no base_model_name_or_path; load the model and PEFT's adapter, and give both"
        )
    return base


def with_adapter(model: PreTrainedModel, source: Source) -> PreTrainedModel:
    """`model` with the adapter of a folder in it, in evaluation mode."""
    if importlib.util.find_spec("peft") is None:
        raise ArtifactError(
            f"{source.name} is a PEFT adapter; to load it: pip install peft, or merge it into its model"
        )
    try:
        model.load_adapter(str(source.place))
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError) as error:
        raise ArtifactError(f"cannot put the adapter {source.name} into its model: {first_line(error)}") from error
    return model.eval()
