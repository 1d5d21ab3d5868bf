"""Lossless speculative decoding for any `transformers` causal language model.

    import slipstream

    model = slipstream.load("tiny", drafter="layer-skip")
    print(model.generate("Write a haiku about rain", max_new_tokens=60).text)

`load`, `Model` and what they return are imported on first use: `import slipstream` itself brings in no torch. It only
says how PyTorch's threads are to wait for each other, where nothing says so yet (`slipstream.runtime.threads`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from slipstream import errors
from slipstream.errors import InputError, LosslessnessError, SlipstreamError
from slipstream.runtime.threads import settle_waiting

if TYPE_CHECKING:
    from slipstream.engine.sequence import Step
    from slipstream.hf_generate import custom_generate
    from slipstream.hf_wrapped import wrap
    from slipstream.model import Model, load
    from slipstream.output import Output, Stats

settle_waiting()  # PyTorch asks when it is imported

__version__ = "0.1.0"

__all__ = [
    "InputError",
    "LosslessnessError",
    "Model",
    "Output",
    "SlipstreamError",
    "Stats",
    "Step",
    "__version__",
    "custom_generate",
    "errors",
    "load",
    "wrap",
]

_HOME = {
    "Model": "slipstream.model",
    "Output": "slipstream.output",
    "Stats": "slipstream.output",
    "Step": "slipstream.engine.sequence",
    "custom_generate": "slipstream.hf_generate",
    "load": "slipstream.model",
    "wrap": "slipstream.hf_wrapped",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
