"""`slipstream bench report`: a benchmark run as one HTML page, and its figures as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli import options
from slipstream.cli.answering import note
from slipstream.cli.bench_files import record_of
from slipstream.cli.outputs import check_out_file


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, or its record.json.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            callback=check_out_file,
            metavar="FILE",
            help="The page; default: report.html beside the record.",
        ),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option("--figures", metavar="DIR", help="Also write every figure as SVG and PNG into DIR.")
    ] = None,
    verbose: options.Verbose = False,
) -> None:
    """Write the report of a benchmark run: one HTML page with tables and figures that needs no network.

    Prints the page's path on stdout. Needs matplotlib: pip install matplotlib.

    Example: slipstream bench report runs/demo --out report.html --figures figures
    """
    from slipstream.report.files import write_report

    record = record_of(run)
    written = write_report(record, out or (run if run.is_dir() else run.parent) / "report.html", figures)
    if figures is not None:
        note(f"{len(written.figures)} figures in {figures}")
    print(written.page)
