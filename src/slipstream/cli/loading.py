"""Loading for the commands: what the user gave, and no progress bar where nobody waits for one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import slipstream
from slipstream.cli.options import given

if TYPE_CHECKING:
    from slipstream import Model


def load(model: str, drafter: str, **settings: Any) -> Model:
    """`slipstream.load` with the settings that are not None."""
    if model == "demo" or not sys.stderr.isatty():
        _hide_progress_bars()
    return slipstream.load(model, drafter, **given(**settings))


def _hide_progress_bars() -> None:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
