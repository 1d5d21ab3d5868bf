"""The journal of a run: one JSON line an answer, a prompt's lines written together, so that a kill loses one prompt.

A prompt ends with a line {"prompt_done": [task, id], "wall_s": seconds}. What follows the last such line is of a
prompt that was cut short; opening the journal to go on drops it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slipstream.errors import ArtifactError
from slipstream.records.schema import Answer
from slipstream.records.shapes import read_shape

_DONE = "prompt_done"


class Journal:
    """Appends finished prompts to a file."""

    def __init__(self, path: Path) -> None:
        """Open for appending; lines of an unfinished prompt at its end are dropped."""
        self._path = path
        self.done: set[tuple[str, int | str]] = set()
        """(task, id) of the prompts that are finished."""
        self.wall_s = 0.0
        """Seconds that the finished prompts took."""
        kept = 0
        if path.is_file():
            for end, line in _lines(path):
                if _DONE in line:
                    task, number = line[_DONE]
                    self.done.add((task, number))
                    self.wall_s += line["wall_s"]
                    kept = end
            with path.open("r+b") as file:
                file.truncate(kept)

    def finish(self, task: str, number: int | str, answers: Iterable[Mapping[str, Any]], wall_s: float) -> None:
        """Write the answers to one prompt, all in one go, and wait until they are on the disk."""
        lines = [*answers, {_DONE: [task, number], "wall_s": round(wall_s, 4)}]
        text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
        with self._path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        self.done.add((task, number))
        self.wall_s += wall_s


def read_answers(path: Path) -> Iterator[Answer]:
    """The answers to all finished prompts, in the order of the run."""
    for number, line in enumerate(read_lines(path), 1):
        yield read_shape(Answer, line, f"{path}, answer {number}")


def num_finished(path: Path) -> int:
    """How many prompts are finished, without a change to the file: a run may be at it."""
    return sum(_DONE in line for _, line in _lines(path)) if path.is_file() else 0


def answer_line(answer: Answer) -> dict[str, Any]:
    """An answer as the journal has it; `trees` and `picture` only where there are some."""
    line = asdict(answer)
    return {name: value for name, value in line.items() if value is not None or name not in ("trees", "picture")}


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of all finished prompts, unchecked."""
    if not path.is_file():
        raise ArtifactError(f"there is no {path}; give the folder of a run that `slipstream bench run` made")
    waiting: list[dict[str, Any]] = []
    for _, line in _lines(path):
        if _DONE in line:
            yield from waiting
            waiting = []
        else:
            waiting.append(line)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each whole line, with the place in the file where it ends; a last line that was cut off is left out."""
    end = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            end += len(raw)
            if not raw.endswith(b"\n"):
                return
            try:
                yield end, json.loads(raw)
            except ValueError as error:
                raise ArtifactError(
                    f"{path}, line {number} is damaged ({error}); remove this line and all after it, then resume"
                ) from error
