"""What forwards of transformers are called with, where releases differ or a model wants more than tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

_NO_DATA = ("self", "input_ids", "inputs_embeds")


def cache_argument(forward: Callable[..., Any]) -> str:
    """The name of the KV cache among the arguments: `cache` since transformers 5.24, `past_key_values` before.

    forward: of the class, for accelerate puts one without a signature on the instance.
    """
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def required_beside_text(forward: Callable[..., Any]) -> list[str]:
    """Arguments of a class's forward that have no default and are no text."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(forward).parameters.values()
    wanted = [one.name for one in parameters if one.kind in kinds and one.default is inspect.Parameter.empty]
    return [name for name in wanted if name not in _NO_DATA]
