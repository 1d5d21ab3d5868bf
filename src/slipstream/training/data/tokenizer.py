"""The demo target's tokenizer: byte-level BPE, and how examples become tokens.

Every byte sequence that is UTF-8 round-trips exactly. Digits are single tokens, so that arithmetic sees place values;
runs of blanks merge, so that indentation is cheap. One document is
`<|bos|>text<|end|>` or `<|bos|><|user|>...<|end|><|assistant|>...<|end|>...`, which is also what the chat template
writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from slipstream.errors import InputError
from slipstream.training.data.corpus import PROMPT_BIT, Documents, Example, Tokens

PAD, BOS, USER, ASSISTANT, END = "<|pad|>", "<|bos|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL_TOKENS = (PAD, BOS, USER, ASSISTANT, END)
"""In the order of their ids, which start at 0."""

# contractions, words, single digits, symbols, line ends with the blanks before them, indentation
_PIECES = r"'(?:s|t|re|ve|m|ll|d)\b| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% set ns = namespace(system='') %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}"
    "{% set ns.system = ns.system + message['content'] + '\n\n' %}"
    "{% elif message['role'] == 'user' %}"
    "{{ '<|user|>' + ns.system + message['content'] + '<|end|>' }}{% set ns.system = '' %}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|>' + message['content'] + '<|end|>' }}"
    "{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Jinja. There is no system role in the training text: a system message is put before the next user message."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train the byte-level BPE on a sample of text; the first ids are `SPECIAL_TOKENS`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write the files `AutoTokenizer.from_pretrained(folder)` reads, chat template included."""
    from transformers import PreTrainedTokenizerFast

    fast: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def encode_examples(tokenizer: Tokenizer, examples: Iterable[Example], batch_size: int = 1024) -> Documents:
    """Encode examples as documents; special tokens written inside the text stay ordinary characters."""
    tokenizer.encode_special_tokens = True
    return Documents.of(_encode_all(tokenizer, iter(examples), batch_size))


def _encode_all(tokenizer: Tokenizer, examples: Iterator[Example], batch_size: int) -> Iterator[Tokens]:
    while batch := list(islice(examples, batch_size)):
        yield from _encode_batch(tokenizer, batch)


def _encode_batch(tokenizer: Tokenizer, examples: list[Example]) -> Iterator[Tokens]:
    segments = [content for example in examples for _, content in example.segments]
    encoded = iter(tokenizer.encode_batch_fast(segments, add_special_tokens=False))
    bos, user, assistant, end = (SPECIAL_TOKENS.index(token) for token in (BOS, USER, ASSISTANT, END))
    opening: dict[str, list[int]] = {"text": [], "user": [user], "assistant": [assistant]}
    for example in examples:
        ids = [bos]
        for role, content in example.segments:
            if role not in opening:
                raise InputError(f"{example.place} has a turn of role {role!r}; here it must be user or assistant")
            flag = 0 if content and role != "user" else PROMPT_BIT  # a turn without text is no answer
            ids += [t | flag for t in opening[role]]
            ids += [t | flag for t in next(encoded).ids]
            ids.append(end | flag)
        yield np.array(ids, np.uint16)
