"""Loading for the commands: what the user gave, and no progress bar where nobody waits for one."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import slipstream
from slipstream.cli.answering import note
from slipstream.cli.options import given, parse_further
from slipstream.errors import InputError
from slipstream.files.packaged import NAMES, SMOLLM2
from slipstream.runtime.threads import check_threads, settle_threads
from slipstream.target import smollm2

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
    if not sys.stderr.isatty():
        hide_progress_bars()
    if model == SMOLLM2:
        smollm2.folder(report=note)
    if model in NAMES:
        hide_progress_bars()  # they load in a moment
    loaded = slipstream.load(model, drafter, **given(**settings), **extra)
    if loaded.tokenizer is None:
        raise InputError(f"{model} holds no tokenizer, which commands need; put its files beside the weights")
    settle_threads(loaded.target, threads)
    if model not in NAMES and settings.get("dtype") is None:
        _note_faster_dtype(loaded)
    return loaded


def _note_faster_dtype(loaded: Model) -> None:
    """One line if the model, as saved, would be faster in another dtype; with `-v` the log has said so already."""
    from slipstream.target.dtypes import faster_dtype

    if not logging.getLogger("slipstream").isEnabledFor(logging.INFO) and (faster := faster_dtype(loaded.target.model)):
        note(str(faster))


def note_rounding(loaded: Model) -> None:
    """One line on what to expect of a 16-bit dtype, if it is one; with `-v` the log has said so already."""
    from slipstream.target.dtypes import rounding_note

    rounds = rounding_note(loaded.target.dtype)
    if rounds and loaded.method != "plain" and not logging.getLogger("slipstream").isEnabledFor(logging.INFO):
        note(rounds)


def is_first(tp_size: int | None) -> bool:
    """Whether this process is the first of those that share a target, or the only one."""
    return tp_size is None or os.environ.get("RANK", "0") == "0"


@contextmanager
def first_alone_speaks(tp_size: int | None) -> Iterator[None]:
    """Of several processes that share a target, only the first one writes to stdout and stderr in this block."""
    if is_first(tp_size):
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def hide_progress_bars() -> None:
    """Load without transformers' bars from here on."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
