"""A kept folder is whole or not there, is made by one process at a time, and notices what happened to its files."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path
from threading import Event, Thread

import pytest
from safetensors import SafetensorError

from slipstream.errors import InputError
from slipstream.files import kept_folder
from slipstream.files.kept_folder import MANIFEST, MISSING, KeptFolder

ORIGIN = {"model": "m", "format": 1}


def fill(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "weights").write_bytes(bytes(range(256)))


@pytest.fixture
def kept(tmp_path: Path) -> KeptFolder:
    return KeptFolder(tmp_path / "cache" / "m", ORIGIN)


@pytest.fixture
def made(kept: KeptFolder) -> KeptFolder:
    kept.make(fill, num_bytes=1)
    return kept


@pytest.fixture
def large_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the weights count as a file that is not hashed at every look."""
    monkeypatch.setattr(kept_folder, "_SMALL", 100)


def names(kept: KeptFolder) -> list[str]:
    return sorted(path.name for path in kept.path.parent.iterdir() if path.suffix != ".lock")


def test_it_is_missing_until_it_is_made(kept):
    assert kept.flaw() == MISSING
    kept.make(fill, num_bytes=1)
    assert kept.flaw() is None
    assert names(kept) == ["m"]


def test_what_is_whole_is_not_made_again(made):
    made.make(lambda folder: pytest.fail("made again"), num_bytes=1)


@pytest.mark.parametrize("name", ["config.json", "weights", MANIFEST])
def test_a_file_that_is_gone_is_noticed(made, name):
    (made.path / name).unlink()
    assert made.flaw() in ("incomplete", f"without its {name}")


@pytest.mark.parametrize("name", ["weights", MANIFEST])
@pytest.mark.usefixtures("large_weights")
def test_a_file_that_was_cut_off_is_noticed(made, name):
    os.truncate(made.path / name, 100)
    assert made.flaw() is not None


def test_a_small_file_that_was_altered_is_noticed_whatever_its_time(made):
    before = (made.path / "config.json").stat()
    (made.path / "config.json").write_text("[]")
    os.utime(made.path / "config.json", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert made.flaw() == "altered (config.json has another sha256)"


@pytest.mark.usefixtures("large_weights")
def test_a_large_file_is_hashed_only_after_a_change(made, monkeypatch):
    (made.path / "weights").write_bytes(bytes(256))
    assert made.flaw() == "altered (weights has another sha256)"
    (made.path / "weights").write_bytes(bytes(range(256)))  # as it was, at another time
    assert made.flaw() is None
    real, hashed = kept_folder.sha256, []
    monkeypatch.setattr(kept_folder, "sha256", lambda path: hashed.append(path.name) or real(path))
    assert made.flaw() is None
    assert hashed == ["config.json"], "the new time was not noted"


def test_another_origin_makes_it_stale(made):
    assert KeptFolder(made.path, ORIGIN | {"format": 2}).flaw() == "made from something else"


@pytest.mark.parametrize("manifest", ["[]", '{"origin": 1}', "{", json.dumps({"origin": ORIGIN, "files": {"x": 1}})])
def test_a_manifest_of_another_form_is_a_flaw(made, manifest):
    (made.path / MANIFEST).write_text(manifest)
    assert made.flaw() is not None


def test_a_damaged_one_is_replaced_and_leftovers_of_killed_processes_go(made):
    (made.path / "weights").unlink()
    (made.path.parent / ".m-killed").mkdir()
    made.make(fill, num_bytes=1)
    assert made.flaw() is None
    assert names(made) == ["m"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_error_on_the_way_leaves_nothing(kept, error):
    def fail(folder: Path) -> None:
        fill(folder)
        raise error

    with pytest.raises(type(error)):
        kept.make(fail, num_bytes=1)
    assert names(kept) == []
    kept.make(fill, num_bytes=1)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_gets_full_is_one_line_and_leaves_nothing(kept, error):
    def fail(folder: Path) -> None:
        fill(folder)
        raise error

    with pytest.raises(InputError, match=r"^the disk of .*cache is full: it takes 275 MB; .*SLIPSTREAM_CACHE=FOLDER$"):
        kept.make(fail, num_bytes=275_000_000)
    assert names(kept) == []


def test_a_disk_that_is_full_is_noticed_before_anything_is_made(kept, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10))
    with pytest.raises(InputError, match="is full"):
        kept.make(lambda folder: pytest.fail("made"), num_bytes=11)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^cannot write to .*; make it writable, or put the cache elsewhere"):
        KeptFolder(tmp_path / "file" / "m", ORIGIN).make(fill, num_bytes=1)


def test_of_two_at_once_one_makes_it_and_the_other_uses_that(kept):
    inside, go_on, waited = Event(), Event(), Event()

    def slow(folder: Path) -> None:
        inside.set()
        assert go_on.wait(10)
        fill(folder)

    def wait() -> None:
        waited.set()
        go_on.set()

    first = Thread(target=kept.make, args=(slow,), kwargs={"num_bytes": 1})
    first.start()
    assert inside.wait(10)
    kept.make(lambda folder: pytest.fail("made twice"), num_bytes=1, on_wait=wait)
    first.join()
    assert waited.is_set()
    assert kept.flaw() is None
