"""A run's folder: held by one process at a time, and compared with what is asked for before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from slipstream.errors import ArtifactError, InputError
from slipstream.records.run_files import SETTINGS_FILE, read_run

LOCK_FILE = ".lock"
"""Locked by the process that writes into the folder; the system unlocks it if that process dies."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Make the folder if need be, and let no other process run in it meanwhile; an empty one is removed at the end.

    Raises InputError where another process holds it, or where it cannot be written.
    """
    lock = FileLock(folder / LOCK_FILE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        text = f"another run is writing into {folder}; wait for it, or give another folder with --out"
        raise InputError(text) from None
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); give another folder with --out") from error
    try:
        yield
    finally:
        if not _content(folder):
            (folder / LOCK_FILE).unlink(missing_ok=True)
            with suppress(OSError):  # another process has just begun to use it
                folder.rmdir()
        lock.release()


def holds_run(folder: Path, *, resume: bool) -> bool:
    """Whether a run is there to go on with. Raises InputError for a folder in use without `resume`."""
    if not (folder / SETTINGS_FILE).is_file():
        if _content(folder):
            raise InputError(f"{folder} is not empty and holds no run; give another folder with --out")
        return False
    if not resume:
        raise InputError(f"{folder} holds a run already; go on with --resume or give another folder with --out")
    return True


def check_same(folder: Path, asked: Mapping[str, Any]) -> None:
    """Raises ArtifactError unless the folder's run agrees with all that is asked for: entries of its `run.json`.

    Of settings, only those that are named are compared.
    """
    before = read_run(folder)
    for key, value in asked.items():
        then = before.get(key)
        if isinstance(value, Mapping) and isinstance(then, Mapping):
            then = {name: then.get(name) for name in value}
        if then != value:
            raise ArtifactError(
                f"the run in {folder} has {_differing(then, value, key)}; "
                "resume with the same, or start another run with --out"
            )


def _content(folder: Path) -> list[Path]:
    return [one for one in folder.iterdir() if one.name != LOCK_FILE] if folder.is_dir() else []


def _differing(before: Any, now: Any, key: str) -> str:
    """Which entry is another than now, in words."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        name = next(name for name in (*before, *now) if before.get(name) != now.get(name))
        return _differing(before.get(name), now.get(name), name)
    return f"{key} {json.dumps(before)[:200]}, this one {json.dumps(now)[:200]}"
