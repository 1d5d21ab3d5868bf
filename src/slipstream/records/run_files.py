"""The files of a run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slipstream.errors import ArtifactError

SETTINGS_FILE = "run.json"
"""What is run, and on what."""
JOURNAL_FILE = "answers.jsonl"
"""All answers (`slipstream.records.journal`)."""
RECORD_FILE = "record.json"
"""The figures (`slipstream.bench.record`)."""
SPEC_BENCH_FOLDER = "spec-bench"
"""The answers once more, in Spec-Bench's layout."""
REPORT_FILE = "report.html"


def read_run(folder: Path) -> dict[str, Any]:
    """What `run.json` of a run says. Raises ArtifactError where there is none or it cannot be read.

    A run of an earlier version, which names no runtime, was eager.
    """
    path = folder / SETTINGS_FILE
    try:
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{folder} holds no run ({SETTINGS_FILE} is missing); `slipstream bench run` makes one"
        ) from error
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged ({error}); start the run anew with another --out") from error
    return {"runtime": "eager", **run}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file at once, so that a kill leaves the old one or the new one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
