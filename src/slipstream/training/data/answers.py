"""`slipstream train answers`: the target's own answers to the prompts of a corpus, as JSON lines to train heads with.

A draft head learns what the *target* says; text that the target wrote itself teaches it most (all published EAGLE-3
recipes regenerate their answers). The work is planned first: which prompts, in which order, at which temperature; then
done in blocks. A block is written when all its answers are there, and its sampling depends on the seed and its number
alone, so a run that was interrupted goes on with the block it was in, and gives the same file as one that was not.
Any beginning of the file holds all sources in the same proportions.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slipstream.errors import ArtifactError, InputError
from slipstream.target.target import Target
from slipstream.training.data.answer_settings import AnswerSettings
from slipstream.training.data.batched_decoding import answer_together
from slipstream.training.data.corpus import Example, read_examples
from slipstream.training.data.dialogues import render


@dataclass(frozen=True, slots=True)
class Prompt:
    """One user turn to be answered."""

    source: str
    """Its file, without folder and ending."""
    example: int
    """Number of the example in its file."""
    turn: int
    """Number of the user turn in the example; what was said before stands as the data has it."""
    ids: tuple[int, ...]
    temperature: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the work is, after each block."""

    num_done: int
    num_prompts: int
    num_tokens: int
    """Of answers, in this and all earlier sittings."""
    tokens_per_s: float
    """Of this sitting."""
    left_s: float


def plan(files: Sequence[Path], tokenizer: Any, settings: AnswerSettings) -> list[Prompt]:
    """The prompts in the order in which they are answered. Raises InputError if there is none.

    Of a conversation one user turn is taken, drawn by the seed. Plain text has no prompt.
    """
    drawn: list[tuple[float, str, int, int, Example]] = []
    for file in files:
        draw = random.Random(f"{settings.seed} {file.stem}")
        turns = [
            (number, example, draw.choice(asked))
            for number, example in enumerate(read_examples(file))
            if (asked := [place for place, (role, text) in enumerate(example.segments) if role == "user" and text])
        ]
        draw.shuffle(turns)
        turns = turns[: settings.per_file]
        # evenly over the run: the i-th of n at (i + u) / n
        drawn += [
            ((index + draw.random()) / len(turns), file.stem, number, place, example)
            for index, (number, example, place) in enumerate(turns)
        ]
    drawn.sort(key=lambda one: one[:3])
    prompts: list[Prompt] = []
    for _, source, number, place, example in drawn:
        messages = [{"role": role, "content": content} for role, content in example.segments[: place + 1]]
        ids = render(messages, tokenizer, answering=True, place=example.place)
        if len(ids) <= settings.max_prompt_tokens:
            temperature = settings.temperatures[len(prompts) % len(settings.temperatures)]
            turn = sum(role == "user" for role, _ in example.segments[:place])
            prompts.append(Prompt(source, number, turn, tuple(ids), temperature))
    if not prompts:
        names = ", ".join(str(file) for file in files)
        raise InputError(f"{names}: no prompt of at most {settings.max_prompt_tokens} tokens")
    return prompts


class AnswerRun:
    """The answers to a list of prompts, in a file."""

    def __init__(self, target: Target, prompts: Sequence[Prompt], out: Path, settings: AnswerSettings) -> None:
        """out: the file; if it is there, the run goes on. Raises InputError if it was made from anything else."""
        self._target, self._out, self._settings = target, out, settings
        k, n = settings.part
        blocks = [list(prompts[first : first + settings.block]) for first in range(0, len(prompts), settings.block)]
        self._blocks = [(number, block) for number, block in enumerate(blocks) if number % n == k - 1]
        self.prompts = [prompt for _, block in self._blocks for prompt in block]
        asked = {key: value for key, value in asdict(settings).items() if key != "part"}
        content = repr((target.hash, str(target.dtype), asked, [(one.ids, one.temperature) for one in prompts]))
        self._key = hashlib.sha256(content.encode()).hexdigest()[:16]
        self.num_tokens = 0
        self.num_done = self._resume()

    def blocks(self) -> Iterator[Progress]:
        """Answer what is missing, block by block."""
        began, tokens_before = time.perf_counter(), self.num_tokens
        done = 0
        sitting = len(self.prompts) - self.num_done
        for number, block in self._blocks:
            done += len(block)
            if done <= self.num_done:
                continue
            answers = self._answer(number, block)
            self._write(block, answers)
            self.num_done = done
            self.num_tokens += sum(map(len, answers))
            elapsed = time.perf_counter() - began
            share = 1 - (len(self.prompts) - done) / sitting
            yield Progress(
                num_done=done,
                num_prompts=len(self.prompts),
                num_tokens=self.num_tokens,
                tokens_per_s=(self.num_tokens - tokens_before) / elapsed,
                left_s=elapsed / share * (1 - share),
            )

    def _answer(self, number: int, block: Sequence[Prompt]) -> list[list[int]]:
        settings = self._settings
        seed = int.from_bytes(hashlib.sha256(f"{settings.seed} {number}".encode()).digest()[:8], "big") >> 1
        return answer_together(
            self._target,
            [one.ids for one in block],
            [one.temperature for one in block],
            num_rows=settings.batch_size,
            max_new_tokens=settings.max_new_tokens,
            seed=seed,
        )

    # --- the file -----------------------------------------------------------------------------------------------

    def _write(self, block: Sequence[Prompt], answers: Sequence[list[int]]) -> None:
        lines = [
            json.dumps(
                {
                    "source": prompt.source,
                    "example": prompt.example,
                    "turn": prompt.turn,
                    "temperature": prompt.temperature,
                    "target": self._target.hash,
                    "run": self._key,
                    "prompt_ids": prompt.ids,
                    "ids": answer,
                },
                separators=(",", ":"),
            )
            for prompt, answer in zip(block, answers, strict=True)
        ]
        self._out.parent.mkdir(parents=True, exist_ok=True)
        with self._out.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")

    def _resume(self) -> int:
        """Answers that are there, in whole blocks; the rest of a block that was being written is cut off."""
        if not self._out.exists():
            return 0
        if not self._out.is_file():
            raise InputError(f"{self._out} is not a file; name the file for the answers")
        whole, size, count, tokens = 0, 0, 0, 0
        ends = [0]
        for _, block in self._blocks:
            ends.append(ends[-1] + len(block))
        block_tokens = 0
        with self._out.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    record = json.loads(line)
                    key, ids = record["run"], record["ids"]
                except (ValueError, KeyError, TypeError) as error:
                    raise ArtifactError(f"{self._out} line {number} is no answer of such a run; delete it") from error
                if key != self._key or number > len(self.prompts):
                    raise InputError(
                        f"{self._out} holds answers made from another target, other data or other settings; "
                        "use the same, or another file"
                    )
                size += len(line)
                block_tokens += len(ids)
                if number in ends:
                    whole, count, tokens, block_tokens = size, number, tokens + block_tokens, 0
        if self._out.stat().st_size > whole:
            with self._out.open("r+b") as file:
                file.truncate(whole)
        self.num_tokens = tokens
        return count
