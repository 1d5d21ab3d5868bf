"""Loading for the commands: what the user gave, and no progress bar where nobody waits for one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import slipstream
from slipstream.cli.options import given, parse_further
from slipstream.errors import InputError
from slipstream.runtime.threads import check_threads, settle_threads

if TYPE_CHECKING:
    from slipstream import Model


def load(
    model: str, drafter: str, further: list[str] | None = None, /, *, threads: int | None = None, **settings: Any
) -> Model:
    """`slipstream.load` with the settings that are not None, and those of `further`, each NAME=VALUE.

    threads: of PyTorch on a CPU; None: what suits the model (`slipstream.runtime.threads`).

    Raises InputError for a name that has a flag of its own: it could be given twice.
    """
    check_threads(threads)
    extra = parse_further(further)
    for name in extra:
        if name in settings:
            raise InputError(f"--option {name} has a flag of its own; use --{name.replace('_', '-')}")
    if model == "demo" or not sys.stderr.isatty():
        hide_progress_bars()
    loaded = slipstream.load(model, drafter, **given(**settings), **extra)
    settle_threads(loaded.target, threads)
    return loaded


def hide_progress_bars() -> None:
    """Load without transformers' bars from here on."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
