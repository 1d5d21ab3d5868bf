"""A model with windows of a few tokens, beside the model itself, so that a short probe reaches past them.

A real window has thousands of tokens, and a probe that long would take too much time at every load. Transformers makes
its masks from the configuration at every pass, so a shadow with another configuration has other windows.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from slipstream.target.shadow import shadow

SHORT = 4
_NAMES = ("sliding_window", "attention_chunk_size")


def with_short_windows(model: PreTrainedModel, inside: nn.Module) -> PreTrainedModel | None:
    """A shadow of `model` with windows and chunks of 4 tokens; None where it has neither.

    inside: a module below all that makes masks. The model is left as it is.
    """
    if not windows(model.config):
        return None
    twin = shadow(model, {inside: lambda own: own})
    own = set(model.modules())
    configs: dict[int, Any] = {}
    for module in twin.modules():
        config = module.__dict__.get("config")
        if module not in own and config is not None:
            configs.setdefault(id(config), _shortened(config))
            module.__dict__["config"] = configs[id(config)]
    return twin


def windows(config: Any) -> list[str]:
    """The settings of a configuration that name windows or chunks."""
    text = config.get_text_config()
    return [name for name in _NAMES if getattr(text, name, None) is not None]


def _shortened(config: Any) -> Any:
    short = copy.deepcopy(config)
    for name in windows(short) if hasattr(short, "get_text_config") else ():
        setattr(short.get_text_config(), name, SHORT)
    return short
