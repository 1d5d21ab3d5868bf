"""Every error that Slipstream raises on purpose.

    SlipstreamError
    |-- InputError (also ValueError)      the caller can mend it: a bad argument, file or prompt
    |   |-- ArtifactError                 a skip set, head or checkpoint that is damaged or made for another target
    |   |   `-- SkipSetError              a skip set that does not fit the target
    |   |-- UnsupportedTargetError        a model that cannot be decoded losslessly here; the message says why
    |   |   `-- LayerSkipUnsupportedError a target whose sub-layers cannot be skipped; other drafters work
    |   |-- UnsupportedSettingError       a generation setting that is unknown, stateful or has no lossless form
    |   `-- ContextLengthError            a prompt that leaves no room for a single token
    `-- LosslessnessError                 output that differs from plain decoding and is not explained by rounding
    ArtifactWarning (a UserWarning)       an artefact made for another target; the output stays exact

A message says what is wrong, with the value and the limit, and how to mend it, in one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SlipstreamError(Exception):
    """Base of all errors raised on purpose."""


class InputError(SlipstreamError, ValueError):
    """The caller's argument, file or prompt is wrong; the message says how to mend it."""


class ArtifactError(InputError):
    """A file is damaged, incomplete, or was made for another target."""


class SkipSetError(ArtifactError):
    """A skip set does not fit the target."""


class UnsupportedTargetError(InputError):
    """The model cannot be verified in trees without changing its output."""


class LayerSkipUnsupportedError(UnsupportedTargetError):
    """The model's sub-layers cannot be skipped; drafters other than `layer-skip` work."""


class UnsupportedSettingError(InputError):
    """A generation setting is unknown, stateful, or has no lossless form."""


class ContextLengthError(InputError):
    """The prompt leaves no room for a single token."""


class LosslessnessError(SlipstreamError):
    """Output differs from plain decoding and rounding does not explain it."""


class ArtifactWarning(UserWarning):
    """An artefact was made for another target: output stays exact, but the draft may be poor."""


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line; its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def unknown_choice(kind: str, value: str, choices: Iterable[str]) -> InputError:
    """An error for `value` that lists the `choices` and suggests the nearest one."""
    known = list(choices)
    nearest = difflib.get_close_matches(value, known, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return InputError(f"unknown {kind} {value!r}; choose from {', '.join(known)}.{hint}")
