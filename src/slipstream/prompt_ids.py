"""Token ids that a caller gives as a prompt: a list, an array, a tensor, or what a tokenizer returns."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from slipstream.errors import InputError

_READ = ("input_ids", "attention_mask", "token_type_ids")
_NO_INPUT = ("special_tokens_mask", "offset_mapping", "length", "num_truncated_tokens", "overflowing_tokens")
"""What tokenizers return beside the inputs of a model."""
_FORMS = 'a prompt is text, token ids, or messages of the form {"role": ..., "content": ...}'
_BATCH = "batches are not served: generate once for each prompt"


def given_ids(prompt: Any) -> list[int] | None:
    """The token ids of a prompt that is given as such; None for text and messages.

    Ids may be whole numbers of any kind, a tensor or array (1-D, or 2-D with one row), or the mapping that a tokenizer
    returns, whose padding is left out. Raises InputError for several rows, for what is no prompt, and for text that is
    none.
    """
    if isinstance(prompt, str):
        _refuse_lone_surrogates(prompt)
        return None
    if isinstance(prompt, Mapping):
        return _of_mapping(prompt)
    if hasattr(prompt, "tolist") and not isinstance(prompt, memoryview):
        return _of_array(prompt)
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray | memoryview):
        raise InputError(f"the prompt is {_kind(prompt)}; {_FORMS}")
    if len(prompt) == 1 and _is_row(prompt[0]):
        return given_ids(prompt[0])
    if len(prompt) > 1 and (all(map(_is_row, prompt)) or all(isinstance(one, str) for one in prompt)):
        raise InputError(f"the prompt is a list of {len(prompt)} prompts, and {_BATCH}; {_FORMS}")
    if prompt and all(isinstance(one, Mapping) for one in prompt):
        return None
    return _whole_numbers(prompt)


def _of_mapping(prompt: Mapping[str, Any]) -> list[int]:
    if "input_ids" not in prompt:
        hint = "; put the message into a list" if "role" in prompt else ""
        raise InputError(f"the prompt is a mapping without input_ids; {_FORMS}{hint}")
    for name, value in prompt.items():
        if name not in _READ + _NO_INPUT and value is not None:
            raise InputError(f"the prompt holds {name}, which is not read; only text is, as input_ids")
    ids = given_ids(prompt["input_ids"])
    if ids is None:
        raise InputError("the input_ids of the prompt are text; give token ids")
    if not ids:
        return ids
    if any(_row_of(prompt, "token_type_ids", len(ids), False)):
        raise InputError("the prompt's token_type_ids are not all 0, and other types are not read; leave them out")
    return _without_padding(ids, _row_of(prompt, "attention_mask", len(ids), True))


def _row_of(prompt: Mapping[str, Any], name: str, length: int, default: bool) -> list[bool]:
    """An entry that goes with the ids: for each of them, whether it is not 0."""
    value = prompt.get(name)
    row = [default] * length if value is None else value
    if len(row) == 1 and _is_row(row[0]):
        row = row[0]
    if len(row) != length:
        raise InputError(f"the prompt's {name} does not have one number for each of its {length} input_ids")
    return [bool(one) for one in row]


def _without_padding(ids: list[int], mask: list[bool]) -> list[int]:
    """The ids that a mask leaves, which may hide some at both ends only."""
    kept = [place for place, shown in enumerate(mask) if shown]
    if not kept:
        raise InputError("the prompt's attention_mask hides all of it; give at least one token to be seen")
    first, end = kept[0], kept[-1] + 1
    if len(kept) != end - first:
        raise InputError("the prompt's attention_mask hides tokens in its middle; only padding at the ends is left out")
    return ids[first:end]


def _of_array(prompt: Any) -> list[int]:
    shape = tuple(prompt.shape)
    if len(shape) == 2 and shape[0] > 1:
        raise InputError(f"the prompt has {shape[0]} rows, and {_BATCH}")
    if len(shape) not in (1, 2):
        raise InputError(f"the prompt has {len(shape)} dimensions; give token ids in one, or one row of them")
    return _whole_numbers(prompt.reshape(-1).tolist())


def _whole_numbers(ids: Iterable[Any]) -> list[int]:
    """As Python's own. Raises InputError for the first that is none, truth values included."""
    found = []
    for one in ids:
        try:
            whole = operator.index(one)
        except TypeError:
            whole = None
        if whole is None or isinstance(one, bool):
            raise InputError(f"the prompt holds {_kind(one)} where a token id should be; {_FORMS}")
        found.append(whole)
    return found


def _refuse_lone_surrogates(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise InputError(f"the prompt holds half a surrogate pair ({half}), which is no text") from error


def _is_row(one: Any) -> bool:
    """Whether an entry of a list is a prompt of its own."""
    if hasattr(one, "shape"):
        return len(one.shape) > 0
    return isinstance(one, Sequence) and not isinstance(one, str | bytes | bytearray | memoryview)


def _kind(value: Any) -> str:
    return "None" if value is None else f"{value!r}" if isinstance(value, bool | float) else f"a {type(value).__name__}"
