"""One process at a time writes into a run's folder, and a run is gone on with as it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from slipstream.bench.run_folder import LOCK_FILE, check_same, hold, holds_run
from slipstream.errors import ArtifactError, InputError
from slipstream.records.run_files import SETTINGS_FILE

HOLDING = """
import sys
from pathlib import Path
from slipstream.bench.run_folder import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_that_another_process_holds_is_refused_and_free_when_that_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [sys.executable, "-c", HOLDING, str(folder)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="another run is writing into"), hold(folder):
            pass
        other.kill()
    with hold(folder):
        assert (folder / LOCK_FILE).is_file()


def test_an_empty_folder_does_not_stay_and_one_with_something_in_it_does(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "new"
    with hold(folder):
        assert not holds_run(folder, resume=False)
    assert not folder.exists()
    with hold(folder):
        (folder / "answers.jsonl").write_text("")
    assert (folder / "answers.jsonl").is_file()


def test_a_place_that_cannot_be_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"), hold(tmp_path / "file" / "run"):
        pass


def test_only_what_is_asked_for_is_compared(tmp_path: Path) -> None:
    (tmp_path / SETTINGS_FILE).write_text(json.dumps({"dtype": "float32", "settings": {"seed": 0, "samples": 1}}))
    check_same(tmp_path, {"settings": {"seed": 0}})
    with pytest.raises(ArtifactError, match="seed 0, this one 1"):
        check_same(tmp_path, {"settings": {"seed": 1}})
    with pytest.raises(ArtifactError, match='dtype "float32", this one "float64"'):
        check_same(tmp_path, {"dtype": "float64", "settings": {"seed": 0}})
