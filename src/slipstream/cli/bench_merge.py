"""`slipstream bench merge`: one record of several runs that differ in their tasks only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli import options
from slipstream.cli.outputs import check_out_file


def merge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs over different tasks.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            callback=check_out_file,
            metavar="FILE",
            help="Write the record here.",
        ),
    ],
    verbose: options.Verbose = False,
) -> None:
    """Make one record of runs that were split by task, such as one for each machine of a kind.

    They must be of the same model, methods, settings, versions and hardware. Prints the record's path on stdout.

    Example: slipstream bench merge runs/chat runs/code --out record.json
    """
    from slipstream.bench.record import build_record
    from slipstream.records.record import json_text, record_json

    record = build_record(*runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json_text(record_json(record)), encoding="utf-8")
    print(out)
