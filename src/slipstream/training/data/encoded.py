"""The encoded mix on disk: tokenizer trained, every source tokenised and split once, then reused by every run.

`OUT/tokenizer/` holds the tokenizer's files, `OUT/corpus/` one array file per source and split, and `index.json`,
which is written last and names the mix and a key of everything the encoding depends on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from slipstream.errors import ArtifactError
from slipstream.training.data import transfer
from slipstream.training.data.corpus import (
    MIX,
    TASKS,
    Documents,
    PackedStream,
    Source,
    Tokens,
    is_held_out,
    read_examples,
    source_paths,
)
from slipstream.training.data.tokenizer import encode_examples, save_tokenizer, train_tokenizer

INDEX = "index.json"
SPLITS = ("train", "held_out")


@dataclass(frozen=True, slots=True)
class Corpus:
    """The encoded mix, both splits."""

    train: dict[str, Documents]
    held_out: dict[str, Documents]
    mix: dict[str, Source]
    key: str
    """Hash of the mix, the sizes of its files, the vocabulary size, and the sampling if it came packed."""
    tokenizer: Tokenizer


def prepare(data: Path, out: Path, vocab_size: int, context: int, mix: Mapping[str, Source] = MIX) -> Corpus:
    """The encoded corpus of `data`, a folder of JSON-lines files or a file that `transfer.pack` wrote.

    The work is done once: what is in `out` already is reused if it was made from the same data and settings.
    Raises InputError when a source is missing, ArtifactError when the packed file is damaged.
    """
    if data.is_file():
        transfer.unpack(data, out)
    else:
        paths = source_paths(data, mix)
        key = _key(paths, mix, vocab_size)
        if not (out / "corpus" / INDEX).is_file() or _read_index(out)["key"] != key:
            _encode(paths, out, vocab_size, context, mix, key)
    return load(out)


def load(out: Path) -> Corpus:
    """Read back what `prepare` left in `out`."""
    index = _read_index(out)
    mix = {name: Source(*values) for name, values in index["mix"].items()}
    train, held_out = ({n: Documents.load(out / "corpus" / f"{n}.{split}.npz") for n in mix} for split in SPLITS)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer" / "tokenizer.json"))
    return Corpus(train, held_out, mix, index["key"], tokenizer)


def _read_index(out: Path) -> dict[str, Any]:
    path = out / "corpus" / INDEX
    try:
        index: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is not a readable corpus index ({error}). Prepare the corpus again.") from error
    return index


def _key(paths: Mapping[str, Path], mix: Mapping[str, Source], vocab_size: int) -> str:
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    shares = {name: (source.task, source.main, source.final) for name, source in mix.items()}
    return hashlib.sha256(json.dumps([sizes, shares, vocab_size]).encode()).hexdigest()[:16]


def _encode(
    paths: Mapping[str, Path], out: Path, vocab_size: int, context: int, mix: Mapping[str, Source], key: str
) -> None:
    folder = out / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    tokenizer = train_tokenizer(_tokenizer_sample(paths, mix), vocab_size)
    save_tokenizer(tokenizer, out / "tokenizer", context)
    for name, path in paths.items():
        for split in SPLITS:
            wanted = split == "held_out"
            examples = (e for e in read_examples(path) if is_held_out(e) is wanted)
            encode_examples(tokenizer, examples).save(folder / f"{name}.{split}.npz")
    index = {"key": key, "mix": {n: (s.task, s.main, s.final) for n, s in mix.items()}}
    write_atomically(folder / INDEX, json.dumps(index, indent=1).encode())


def _tokenizer_sample(paths: Mapping[str, Path], mix: Mapping[str, Source], limit: int = 400_000) -> Iterator[str]:
    """Up to `limit` characters a copy of each source, from its training split."""
    for name, path in paths.items():
        room = int(limit * max(1.0, mix[name].final))
        for example in read_examples(path):
            if room <= 0:
                break
            if not is_held_out(example):
                yield example.content
                room -= len(example.content)


def held_out_rows(corpus: Corpus, length: int = 1024, num_tokens: int = 8192) -> dict[str, Tokens]:
    """A fixed sample of each task's held-out text, packed: [rows, length + 1]. Tasks without any are left out."""
    rows = {}
    for task in TASKS:
        parts = {n: corpus.held_out[n] for n, source in corpus.mix.items() if source.task == task}
        available = sum(len(documents.tokens) for documents in parts.values())
        row = min(length, available - 1)
        if row > 0:
            stream = PackedStream(parts, dict.fromkeys(parts, 1.0), (0,))
            rows[task] = stream.take(max(1, min(num_tokens, available - 1) // row), row)
    return rows


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file so that a reader, or a crash, sees the old content or the new, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
