"""The record that a command was given: of a run's folder, brought up to date first, or a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slipstream.records.schema import Record


def record_of(run: Path) -> Record:
    """Read a record. In a folder it is computed anew where answers came after it, as in a run that was killed."""
    from slipstream.records.record import load_record
    from slipstream.records.run_files import JOURNAL_FILE, RECORD_FILE

    journal, record = run / JOURNAL_FILE, run / RECORD_FILE
    if journal.is_file() and not (record.is_file() and record.stat().st_mtime >= journal.stat().st_mtime):
        from slipstream.bench.record import write_record

        write_record(run)
    return load_record(run)
