"""A folder of files that took long to make: made once, whole or not at all, and known again by its manifest.

The manifest, `slipstream.json`, names what the folder was made from and the size and sha256 of every file. At each look
all sizes are compared; small files are hashed, large ones only if their time of change differs from the one noted, so
that a look costs milliseconds and yet a file that was cut off, edited or half copied is noticed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from slipstream.errors import InputError
from slipstream.files.cache_folder import CACHE_VARIABLE

MANIFEST = "slipstream.json"
MISSING = "missing"
_SMALL = 16_000_000
"""Bytes up to which a file is hashed at every look."""


class KeptFolder:
    """One such folder. origin: JSON values that say what it is made from and how; others make it stale."""

    def __init__(self, path: Path, origin: Mapping[str, Any]) -> None:
        self.path, self.origin = path, dict(origin)

    def flaw(self) -> str | None:
        """What is wrong with the folder, MISSING if it is not there, None if it is as it was made."""
        if not self.path.is_dir():
            return MISSING
        try:
            manifest = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
            files: dict[str, dict[str, Any]] = manifest["files"]
            if manifest["origin"] != self.origin:
                return "made from something else"
            return self._flaw_of_files(manifest, files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return "incomplete"

    def make(self, fill: Callable[[Path], None], *, num_bytes: int, on_wait: Callable[[], None] = lambda: None) -> None:
        """Have `fill` write the files into an empty folder, which then takes this one's place, unless it is whole.

        num_bytes: what the files will need. on_wait: called if another process is at it; its work is then used.
        Raises InputError where the folder cannot be written or the disk is full; nothing half done is left then, nor
        after any other error of `fill`.
        """
        parent = self.path.parent
        with self._one_line(num_bytes):
            parent.mkdir(parents=True, exist_ok=True)
            with _alone(parent / f".{self.path.name}.lock", on_wait):
                if self.flaw() is None:  # another process has just made it
                    return
                self._remove_leftovers()
                free = shutil.disk_usage(parent).free
                if free < num_bytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                building = Path(tempfile.mkdtemp(prefix=f".{self.path.name}-", dir=parent))
                try:
                    fill(building)
                    _write_manifest(building, self.origin)
                    self._put(building)
                finally:
                    shutil.rmtree(building, ignore_errors=True)

    def _flaw_of_files(self, manifest: dict[str, Any], files: dict[str, dict[str, Any]]) -> str | None:
        touched = False
        for name, noted in files.items():
            path = self.path / name
            if not path.is_file():
                return f"without its {name}"
            found = path.stat()
            if found.st_size != noted["bytes"]:
                return f"cut off or altered ({name} has {found.st_size} bytes, not {noted['bytes']})"
            same_time = found.st_mtime_ns == noted["changed_ns"]
            if found.st_size > _SMALL and same_time:
                continue
            if sha256(path) != noted["sha256"]:
                return f"altered ({name} has another sha256)"
            touched |= not same_time
            noted["changed_ns"] = found.st_mtime_ns
        if touched:
            with suppress(OSError):  # a cache that only others may write stays usable, if slower to look at
                _write(self.path / MANIFEST, manifest)
        return None

    def _put(self, building: Path) -> None:
        """Move the finished folder to its place. What was there goes first: a folder does not replace another."""
        if self.path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{self.path.name}-", dir=self.path.parent))
            os.replace(self.path, old / "old")
            os.replace(building, self.path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(building, self.path)

    def _remove_leftovers(self) -> None:
        """Of processes that were killed: whoever is alone here may take all of them away."""
        for left in self.path.parent.glob(f".{self.path.name}-*"):
            shutil.rmtree(left, ignore_errors=True)

    @contextmanager
    def _one_line(self, num_bytes: int) -> Iterator[None]:
        """Errors of writing as one line that says where and what to do."""
        elsewhere = f"or put the cache elsewhere with {CACHE_VARIABLE}=FOLDER"
        try:
            yield
        except (OSError, SafetensorError, RuntimeError) as error:
            if _is_disk_full(error):
                raise InputError(
                    f"the disk of {self.path.parent} is full: it takes {num_bytes / 1e6:.0f} MB; free some, {elsewhere}"
                ) from error
            if not isinstance(error, OSError):
                raise
            raise InputError(
                f"cannot write to {self.path.parent}: {error.strerror or error}; make it writable, {elsewhere}"
            ) from error


@contextmanager
def _alone(lock: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """While no other process is in here; the lock dies with its holder, however that ends."""
    guard = FileLock(lock)
    try:
        guard.acquire(timeout=0)
    except Timeout:
        on_wait()
        guard.acquire()
    try:
        yield
    finally:
        guard.release()


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_manifest(folder: Path, origin: Mapping[str, Any]) -> None:
    files = {
        path.name: {"bytes": found.st_size, "sha256": sha256(path), "changed_ns": found.st_mtime_ns}
        for path in sorted(folder.iterdir())
        if (found := path.stat())
    }
    _write(folder / MANIFEST, {"origin": origin, "files": files})


def _write(path: Path, manifest: Mapping[str, Any]) -> None:
    """At once, so that no reader finds half of it."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    os.replace(draft, path)


def _is_disk_full(error: BaseException) -> bool:
    """Also where a library has made a text of the system's error."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return os.strerror(errno.ENOSPC).lower() in str(error).lower()
