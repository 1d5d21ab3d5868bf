"""The answers of a data file, as token ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slipstream.target.target import Target
from slipstream.training.data.corpus import read_examples
from slipstream.training.data.dialogues import encode
from slipstream.training.data.token_lines import holds_token_lines, read_token_lines


def answers_of(path: Path, target: Target, tokenizer: Any) -> Iterator[list[int]]:
    """The tokens of each dialogue that belong to answers. path: JSON lines of messages, or of token ids."""
    ours = holds_token_lines(path)
    dialogues = read_token_lines(path, target) if ours else (encode(one, tokenizer) for one in read_examples(path))
    for one in dialogues:
        yield [token for token, answer in zip(one.token_ids, one.answer, strict=True) if answer]
