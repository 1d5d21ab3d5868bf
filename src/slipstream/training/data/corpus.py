"""The demo target's training text: reading, weighting, the held-out split, packing into rows.

A source is one JSON-lines file of `{"messages": [...]}` or `{"text": ...}` (`conversations.py`). Encoded, it is one
flat uint16 array: the low 15 bits of an element are the token id, the top bit (`PROMPT_BIT`) marks tokens the user
wrote, whose loss counts less. Documents follow each other without padding; a row may begin inside a document.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slipstream.errors import ArtifactError, InputError
from slipstream.training.data.conversations import UnusableError, read_lines, segments_of

logger = logging.getLogger(__name__)

PROMPT_BIT = 1 << 15
HELD_OUT_RATE = 0.01
TASKS = ("chat", "code", "maths", "instructions and QA", "summarisation", "plain text")

Tokens = NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Source:
    """One file of the mix and how often a pass over the mix repeats it."""

    task: str
    """One of `TASKS`."""
    main: float
    """Copies of each document in a pass of the main phase; the fraction is a random subset."""
    final: float
    """The same for the final phase, in which the learning rate falls."""


MIX: dict[str, Source] = {
    "gsm8k_train": Source("maths", 3, 3),
    "svamp": Source("maths", 3, 3),
    "tal_scq5k_en": Source("maths", 1, 1),
    "aqua_dev_test": Source("maths", 1, 1),
    "mathqa_python": Source("maths", 0.5, 0.3),
    "mbpp": Source("code", 4, 4),
    "exercism_python": Source("code", 1, 1),
    "gpteacher_codegen": Source("code", 3, 3),
    "leetcode_solutions_python": Source("code", 0.5, 0.3),
    "python_functions": Source("code", 1, 0.6),
    "python_files": Source("code", 0.5, 0.1),
    "python_reference": Source("plain text", 0.5, 0),
    "opentriviaqa": Source("instructions and QA", 0.6, 0.3),
    "nq_open_dev": Source("instructions and QA", 3, 3),
    "xquad_en": Source("instructions and QA", 1, 1),
    "world_factbook_qa": Source("instructions and QA", 1, 0.5),
    "openstax_qa": Source("instructions and QA", 1, 0.6),
    "t0_reading_qa": Source("instructions and QA", 0.7, 0.5),
    "self_instruct_human": Source("instructions and QA", 4, 4),
    "wiki_split": Source("instructions and QA", 0.5, 0.2),
    "wikinews": Source("summarisation", 2, 2),
    "scitldr": Source("summarisation", 0.7, 0.5),
    "qmsum": Source("summarisation", 0.5, 0.4),
    "squality": Source("summarisation", 0.5, 0.3),
    "mts_dialog": Source("summarisation", 1, 0.5),
    "openstax_summaries": Source("summarisation", 1.5, 1.5),
    "topical_chat": Source("chat", 1, 0.5),
    "synthetic_persona_chat": Source("chat", 1, 0.4),
    "schema_guided_dialogue": Source("chat", 0.4, 0.2),
    "taskmaster4": Source("chat", 0.3, 0.1),
    "oasst_samples": Source("chat", 2.5, 3),
    "gpteacher_roleplay": Source("chat", 4, 4),
    "openstax_text": Source("plain text", 0.8, 0.15),
    "standard_ebooks": Source("plain text", 0.6, 0.1),
}
"""The demo target's mix: instructions and answers weighted up, plain text for the English between them."""


@dataclass(frozen=True, slots=True)
class Example:
    """One training document: a conversation, or plain text as one segment of role `text`."""

    segments: tuple[tuple[str, str], ...]
    """(role, content) in order; plain text has the role `text`. A turn without text has empty content."""
    place: str = field(default="", repr=False, compare=False)
    """File and line that it was read from, for messages."""

    @property
    def content(self) -> str:
        """All text of the example, for baselines and byte counts."""
        return "\n".join(content for _, content in self.segments)


def read_examples(path: Path) -> Iterator[Example]:
    """Yield the examples of a JSON-lines file in the layouts of `conversations.py`.

    Those that cannot be used are left out, and a warning says how many, and why the first of them. Raises InputError
    naming file and line for anything else.
    """
    num_read, unusable = 0, []
    for number, line in read_lines(path):
        place = f"{path} line {number}"
        num_read += 1
        try:
            yield Example(segments_of(line, place), place)
        except UnusableError as reason:
            unusable.append(f"{place}: {reason}")
    if unusable:
        logger.warning("%d of %d examples are left out; %s", len(unusable), num_read, unusable[0])


def is_held_out(example: Example, rate: float = HELD_OUT_RATE) -> bool:
    """Whether an example belongs to the held-out split, decided by a hash of its first segment.

    The first segment is the prompt of a conversation, so all answers to one prompt fall on the same side.
    """
    words = " ".join(example.segments[0][1].lower().split())
    digest = hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < rate * 2**64


def source_paths(data: Path, mix: Mapping[str, Source] = MIX) -> dict[str, Path]:
    """The file of each source of the mix. Raises InputError when the folder lacks one."""
    paths = {name: data / f"{name}.jsonl" for name in mix}
    if missing := [name for name, path in paths.items() if not path.is_file()]:
        raise InputError(f"{data} lacks {len(missing)} of {len(mix)} sources of the mix: {', '.join(missing)}.")
    return paths


@dataclass(frozen=True, slots=True)
class Documents:
    """Encoded documents of one source."""

    tokens: Tokens
    """[num_tokens] token ids, with `PROMPT_BIT` on the user's."""
    offsets: NDArray[np.int64]
    """[num_documents + 1] where each document starts."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Tokens:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def save(self, path: Path) -> None:
        """Write both arrays to an uncompressed .npz file."""
        with path.open("wb") as file:
            np.savez(file, tokens=self.tokens, offsets=self.offsets)

    @staticmethod
    def load(path: Path) -> Documents:
        """Read what `save` wrote. Raises ArtifactError for anything else."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return Documents(arrays["tokens"], arrays["offsets"])
        except (OSError, ValueError, KeyError) as error:
            raise ArtifactError(
                f"{path} does not hold encoded documents ({error}). Delete it and prepare again."
            ) from error

    @staticmethod
    def of(documents: Iterable[Tokens]) -> Documents:
        """Join single documents."""
        parts = list(documents)
        offsets = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)
        return Documents(np.concatenate(parts) if parts else np.empty(0, np.uint16), offsets)


def build_pass(documents: Mapping[str, Documents], copies: Mapping[str, float], seed: tuple[int, ...]) -> Tokens:
    """One shuffled pass over the mix as a flat stream; the same seed gives the same stream.

    A source with 2.3 copies contributes every document twice and a random 30 % of them a third time.
    """
    rng = np.random.default_rng(seed)
    picks: list[tuple[str, int]] = []
    for name, source in documents.items():
        whole, part = divmod(copies[name], 1)
        for _ in range(int(whole)):
            picks += [(name, i) for i in range(len(source))]
        picks += [(name, int(i)) for i in rng.permutation(len(source))[: round(part * len(source))]]
    if not picks:
        raise InputError("The mix is empty: every source has zero documents or zero copies.")
    return np.concatenate([documents[picks[i][0]][picks[i][1]] for i in rng.permutation(len(picks))])


class PackedStream:
    """Endless packed rows of one phase; its whole state is (pass number, position)."""

    def __init__(self, documents: Mapping[str, Documents], copies: Mapping[str, float], seed: tuple[int, ...]) -> None:
        self._documents, self._copies, self._seed = documents, dict(copies), seed
        self.pass_number, self.position = 0, 0
        self._pass: Tokens | None = None

    def seek(self, pass_number: int, position: int) -> None:
        """Continue where a stream of the same documents, copies and seed stood."""
        if pass_number != self.pass_number:
            self._pass = None
        self.pass_number, self.position = pass_number, position

    def take(self, num_rows: int, length: int) -> Tokens:
        """The next rows. Returns [num_rows, length + 1]: the last column is only ever a label."""
        rows = np.empty((num_rows, length + 1), np.uint16)
        for row in rows:
            row[:] = self._next_run(length)
        return rows

    def _next_run(self, length: int) -> Tokens:
        while True:
            if self._pass is None:
                self._pass = build_pass(self._documents, self._copies, (*self._seed, self.pass_number))
            if self.position + length < len(self._pass):
                break
            if len(self._pass) <= length:
                raise InputError(f"A pass has {len(self._pass)} tokens, fewer than a row of {length + 1}.")
            self._pass, self.pass_number, self.position = None, self.pass_number + 1, 0
        run = self._pass[self.position : self.position + length + 1]
        self.position += length
        return run
