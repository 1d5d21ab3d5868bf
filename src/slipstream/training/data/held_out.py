"""How well a model predicts the held-out text, in bits per byte, beside two trigram models and `xz -9`.

The model pays for every token of a document after its first, role and end tokens included; the bytes are those of the
text alone. Held-out documents that share a long run of tokens with the training split are left out, since
several sources quote the same code or passages.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slipstream.training.data.corpus import PROMPT_BIT, TASKS, Tokens
from slipstream.training.data.encoded import Corpus
from slipstream.training.next_token import split_rows, token_losses

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TaskBits:
    """Bits per byte of one task's held-out text."""

    task: str
    num_documents: int
    num_bytes: int
    target: float
    token_trigram: float
    """Trigrams of the target's own tokens, which see about seven bytes back, counted on the whole training split."""
    byte_trigram: float
    xz: float


def bits_per_byte(
    model: Any, corpus: Corpus, device: torch.device, *, overlap_run: int = 32, window: int = 2048
) -> list[TaskBits]:
    """Measure every task of the corpus that has held-out text.

    Documents longer than `window` tokens are cut, and each further window starts without its past.
    """
    train = [documents.tokens for documents in corpus.train.values()]
    seen = run_hashes(train, overlap_run)
    tokens = Trigram(np.concatenate([plain(t) for t in train]), model.config.vocab_size)
    text_bytes = Trigram(_as_bytes(_training_sample(corpus)), 256)
    table = []
    for task in TASKS:
        names = [name for name, source in corpus.mix.items() if source.task == task]
        documents = [corpus.held_out[name][i] for name in names for i in range(len(corpus.held_out[name]))]
        documents = [d for d in documents if not overlaps(d, seen, overlap_run)]
        texts = _decode(corpus, documents)
        text = "".join(texts).encode()
        if text:
            bits = (
                document_nats(model, documents, device, window) / np.log(2),
                sum(tokens.bits(plain(d)) for d in documents),
                sum(text_bytes.bits(_as_bytes([t])) for t in texts),
                8.0 * len(lzma.compress(text, preset=9)),
            )
            table.append(TaskBits(task, len(documents), len(text), *(float(b) / len(text) for b in bits)))
    return table


def _decode(corpus: Corpus, documents: list[Tokens]) -> list[str]:
    texts: list[str] = corpus.tokenizer.decode_batch([plain(d).tolist() for d in documents], skip_special_tokens=True)
    return texts


def _training_sample(corpus: Corpus, num_tokens: int = 10_000_000) -> list[str]:
    """Evenly spaced training documents: byte trigrams need no more."""
    every = -(-sum(len(documents.tokens) for documents in corpus.train.values()) // num_tokens)
    return _decode(
        corpus, [documents[i] for documents in corpus.train.values() for i in range(0, len(documents), every)]
    )


def _as_bytes(texts: list[str]) -> Ids:
    """The bytes of texts, each after a zero byte."""
    return np.frombuffer(b"".join(b"\0" + text.encode() for text in texts), np.uint8).astype(np.int64)


def plain(tokens: Tokens) -> Ids:
    """Token ids without the prompt bit."""
    return (tokens & (PROMPT_BIT - 1)).astype(np.int64)


@torch.no_grad()
def document_nats(model: Any, documents: list[Tokens], device: torch.device, window: int) -> float:
    """Sum of the cross-entropy, in nats, of all tokens of the documents but the first of each."""
    pieces = [d[i : i + window + 1] for d in documents for i in range(0, len(d) - 1, window)]
    pieces.sort(key=len)
    total = 0.0
    for batch in _batches(pieces, 8192):
        rows = np.zeros((len(batch), max(map(len, batch))), np.uint16)
        real = np.zeros((len(batch), rows.shape[1] - 1), np.float32)
        for i, piece in enumerate(batch):
            rows[i, : len(piece)] = piece
            real[i, : len(piece) - 1] = 1
        inputs, labels, _ = split_rows(rows, 1.0, device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            losses: Tensor = token_losses(model, inputs, labels) * torch.from_numpy(real).to(device)
        total += float(losses.sum(dtype=torch.float64))
    return total


def _batches(pieces: list[Tokens], num_tokens: int) -> Iterable[list[Tokens]]:
    """Runs of similar length, each padded to at most about `num_tokens`."""
    start = 0
    while start < len(pieces):
        end = start + 1
        while end < len(pieces) and (end + 1 - start) * len(pieces[end]) <= num_tokens:
            end += 1
        yield pieces[start:end]
        start = end


def packed_losses(model: Any, rows: Mapping[str, Tokens], device: torch.device, batch: int = 4096) -> dict[str, float]:
    """Mean cross-entropy in nats per token of packed rows ([rows, length + 1] per task), a quick check in training."""
    losses = {}
    with torch.no_grad():
        for task, matrix in rows.items():
            size = max(1, batch // (matrix.shape[1] - 1))
            total = 0.0
            for start in range(0, len(matrix), size):
                inputs, labels, _ = split_rows(matrix[start : start + size], 1.0, device)
                with torch.autocast(device.type, dtype=torch.bfloat16):
                    total += float(token_losses(model, inputs, labels).sum(dtype=torch.float64))
            losses[task] = total / (len(matrix) * (matrix.shape[1] - 1))
    return losses


# --- overlap with the training split ---------------------------------------------------------------------------------


def _rolling(tokens: Tokens, run: int) -> NDArray[np.uint64]:
    """A 64-bit hash of every run of consecutive tokens. Returns [max(0, num_tokens - run + 1)]."""
    if len(tokens) < run:
        return np.empty(0, np.uint64)
    ids = (tokens & (PROMPT_BIT - 1)).astype(np.uint64)
    hashes = np.zeros(len(tokens) - run + 1, np.uint64)
    for i in range(run):
        hashes *= np.uint64(0x9E3779B97F4A7C15)
        hashes += ids[i : i + len(hashes)] + np.uint64(1)
        hashes ^= hashes >> np.uint64(29)
    return hashes


def run_hashes(streams: Iterable[Tokens], run: int) -> NDArray[np.uint64]:
    """Sorted hashes of all runs of `run` tokens."""
    return np.sort(np.concatenate([_rolling(tokens, run) for tokens in streams]))


def overlaps(document: Tokens, seen: NDArray[np.uint64], run: int) -> bool:
    """Whether any run of the document is among the sorted hashes `seen`."""
    hashes = _rolling(document, run)
    if not len(hashes) or not len(seen):
        return False
    places = np.minimum(np.searchsorted(seen, hashes), len(seen) - 1)
    return bool((seen[places] == hashes).any())


# --- baseline --------------------------------------------------------------------------------------------------------


class Trigram:
    """A trigram model over tokens with Witten-Bell smoothing (interpolated down to add-one unigrams)."""

    def __init__(self, tokens: Ids, vocab_size: int) -> None:
        self._vocab = vocab_size
        counts = np.bincount(tokens, minlength=vocab_size)
        self._unigram = (counts + 1) / (counts.sum() + vocab_size)
        self._bigram = _Ngrams(tokens[:-1], tokens[1:], vocab_size)
        self._trigram = _Ngrams(tokens[:-2] * vocab_size + tokens[1:-1], tokens[2:], vocab_size)

    def bits(self, document: Ids) -> float:
        """Bits of all tokens of a document but the first; a token before the first is taken to be the first."""
        padded = np.concatenate([document[:1], document])
        older, newer, label = padded[:-2], padded[1:-1], padded[2:]
        p = self._unigram[label]
        p = self._bigram.interpolate(newer, label, p)
        p = self._trigram.interpolate(older * self._vocab + newer, label, p)
        return float(-np.log2(p).sum())


class _Ngrams:
    """Counts of labels after contexts, as sorted keys."""

    def __init__(self, contexts: Ids, labels: Ids, vocab_size: int) -> None:
        self._vocab = vocab_size
        self._keys, self._counts = np.unique(contexts * vocab_size + labels, return_counts=True)
        self._contexts, starts = np.unique(self._keys // vocab_size, return_index=True)
        self._types = np.diff(np.append(starts, len(self._keys)))
        self._totals = np.add.reduceat(self._counts, starts) if len(starts) else self._counts

    def interpolate(self, contexts: Ids, labels: Ids, lower: NDArray[np.float64]) -> NDArray[np.float64]:
        """(count + types * lower) / (total + types), Witten-Bell; `lower` where the context is new."""
        count = _lookup(self._keys, self._counts, contexts * self._vocab + labels)
        total = _lookup(self._contexts, self._totals, contexts)
        types = _lookup(self._contexts, self._types, contexts)
        seen = total > 0
        return np.where(seen, (count + types * lower) / np.where(seen, total + types, 1), lower)


def _lookup(keys: Ids, values: Ids, wanted: Ids) -> Ids:
    """The value of each wanted key, 0 where it is absent; `keys` is sorted."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)
