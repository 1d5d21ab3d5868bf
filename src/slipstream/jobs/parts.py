"""The folder of a job while it runs: what was asked for, and one file of finished answers for each process.

    answers.jsonl.parts/job.json        the header: model, method, settings, versions
    answers.jsonl.parts/0-of-2.jsonl    answers of process 0 of 2, in the order in which it finished them
    answers.jsonl.parts/5a...jsonl      a piece: answers that were written at once, by whomever

Whoever finishes last joins the parts in the order of the prompts and removes the folder. A line that was cut off by a
kill is dropped, so a killed process loses the answer that it was at.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from slipstream.errors import InputError

HEADER = "job.json"


class Parts:
    """A job's folder, beside its output file."""

    def __init__(self, out: Path, header: Mapping[str, Any]) -> None:
        """header: JSON values; two runs with the same are one job."""
        self.out, self.header = out, dict(header)
        self.header_file = out.with_name(f"{out.name}.{HEADER}")
        self.folder = out.with_name(f"{out.name}.parts")

    def begin(self) -> bool:
        """Make the folder, or find it. Returns whether the whole job is done already.

        Raises InputError where the output or the folder is another job's.
        """
        if self.out.exists():
            self._check(self.header_file, f"{self.out} is there already and is not this job's; choose another --out")
            return True
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / HEADER
        with FileLock(self.folder / "lock"):
            if file.exists():
                self._check(file, f"{self.folder} is of another job; choose another --out, or delete it to start over")
            else:
                _write(file, _text(self.header))
        return False

    def done(self) -> dict[str | int, str]:
        """The finished answers by id, as lines."""
        found: dict[str | int, str] = {}
        for file in sorted(self.folder.glob("*.jsonl")):
            found.update({json.loads(line)["id"]: line for line in _whole_lines(file)})
        return found

    @contextmanager
    def writing(self, rank: int, world_size: int) -> Iterator[Part]:
        """The file of one process. Raises InputError where another process has it."""
        file = self.folder / f"{rank}-of-{world_size}.jsonl"
        lock = FileLock(file.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"another process is already process {rank} of {world_size} of this job") from None
        try:
            yield Part(file)
        finally:
            lock.release()

    def join(self, ids: Sequence[str | int]) -> bool:
        """Write the output file if all answers are there and no other process has. Returns whether it did."""
        with FileLock(self.out.with_name(f"{self.out.name}.lock")) as lock:
            done = self.done()
            is_ours = not self.out.exists() and all(one in done for one in ids)
            if is_ours:
                _write(self.header_file, _text(self.header))
                _write(self.out, "".join(done[one] for one in ids))
            is_written = self.out.exists()
            if is_written:
                shutil.rmtree(self.folder, ignore_errors=True)
        if is_written:
            with suppress(OSError):  # Windows keeps a file that another process has just opened
                Path(lock.lock_file).unlink()
        return is_ours

    def _check(self, file: Path, otherwise: str) -> None:
        """Raise InputError unless the file holds this job's header; says in what they differ."""
        try:
            there = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise InputError(otherwise) from None
        ours = json.loads(_text(self.header))
        if there != ours:
            differing = sorted(name for name in {*there, *ours} if there.get(name) != ours.get(name))
            raise InputError(f"{otherwise} (it differs in {', '.join(differing)})")


def add_piece(folder: Path, answers: Sequence[Mapping[str, Any]]) -> None:
    """Write answers, all or none. The file is named by their ids, so it takes its own place if it is written again."""
    if answers:
        ids = json.dumps([one["id"] for one in answers])
        _write(folder / f"{hashlib.sha256(ids.encode()).hexdigest()[:16]}.jsonl", "".join(map(_line, answers)))


class Part:
    """The answers of one process, opened to go on: a line that was cut off is dropped."""

    def __init__(self, file: Path) -> None:
        self._file, self.folder = file, file.parent
        if file.exists():
            size = sum(len(line.encode()) for line in _whole_lines(file))
            with file.open("r+b") as opened:
                opened.truncate(size)

    def add(self, answer: Mapping[str, Any]) -> None:
        """Write one answer, and wait until it is on the disk."""
        with self._file.open("ab") as opened:
            opened.write(_line(answer).encode())
            opened.flush()
            os.fsync(opened.fileno())


def _whole_lines(file: Path) -> list[str]:
    lines = file.read_bytes().split(b"\n")[:-1]
    return [line.decode() + "\n" for line in lines]


def _line(answer: Mapping[str, Any]) -> str:
    return json.dumps(answer, ensure_ascii=False) + "\n"


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def _write(file: Path, text: str) -> None:
    """The whole file or none of it."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(temporary, file)
