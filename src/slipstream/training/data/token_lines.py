"""Dialogues as token ids in JSON lines: a prompt and the answer that the target wrote to it, one a line.

    {"prompt_ids": [1, 9690, ...], "ids": [504, ..., 2], "target": "0123456789abcdef", ...}

What text looks like under a chat template is then settled, and no tokenizer is needed to read it. `target` is the hash
of the model that answered.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slipstream.errors import InputError
from slipstream.target.target import Target
from slipstream.training.data.conversations import read_lines
from slipstream.training.data.dialogues import Dialogue

logger = logging.getLogger(__name__)


def holds_token_lines(path: Path) -> bool:
    """Whether the first line of a file is a prompt and an answer as token ids."""
    try:
        record = json.loads(next(read_lines(path), (1, "null"))[1])
    except ValueError:
        return False
    return isinstance(record, dict) and {"prompt_ids", "ids"} <= record.keys()


def read_token_lines(path: Path, target: Target) -> Iterator[Dialogue]:
    """Yield the dialogues of a file; a last line that is still being written is left out.

    Raises InputError naming file and line for anything else, and for answers by another target.
    """
    for number, line in read_lines(path):
        if not line.endswith("\n"):
            logger.warning("%s line %d has no end and is left out", path, number)
            return
        yield _dialogue(line, f"{path} line {number}", target)


def _dialogue(line: str, place: str, target: Target) -> Dialogue:
    try:
        record: dict[str, Any] = json.loads(line)
        prompt, ids = (tuple(map(int, record[name])) for name in ("prompt_ids", "ids"))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{place} is not {{"prompt_ids": [...], "ids": [...]}} ({error!r})') from error
    answered_by = record.get("target", target.hash)
    if answered_by != target.hash:
        raise InputError(
            f"{place} was answered by the target {answered_by}, but {target.name} is {target.hash}; give answers by "
            "the target that is to be sped up"
        )
    if any(not 0 <= token < target.vocab_size for token in (*prompt, *ids)):
        raise InputError(f"{place} holds token ids outside the target's vocabulary of {target.vocab_size}")
    return Dialogue((*prompt, *ids), (*[False] * len(prompt), *[True] * len(ids)))
