"""Writes what a record turns into: the page, and its figures as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slipstream.errors import InputError
from slipstream.records.schema import Record
from slipstream.report.charts import Chart, charts
from slipstream.report.page import PageFigure, page
from slipstream.report.style import drawing
from slipstream.report.svg import inline, svg_text

PNG_DPI = 160


@dataclass(frozen=True, slots=True)
class Written:
    """The files of a report."""

    page: Path
    figures: list[Path]


def write_report(record: Record, out: Path, figures: Path | None = None) -> Written:
    """Write the page to `out`, and each of its figures as SVG and PNG into the folder `figures`, if one is given.

    Raises InputError without matplotlib, or if a file cannot be written.
    """
    drawn = [_draw(chart, figures) for chart in charts(record)]
    _write(out, page(record, [figure for figure, _ in drawn]))
    return Written(out, [path for _, paths in drawn for path in paths])


def _draw(chart: Chart, folder: Path | None) -> tuple[PageFigure, list[Path]]:
    """A figure for the page, and its files if there is a folder."""
    paths = []
    with drawing(chart.name):
        figure = chart.draw()
        document = svg_text(figure)
        if folder is not None:
            paths = [folder / f"{chart.name}.svg", folder / f"{chart.name}.png"]
            _write(paths[0], document)
            figure.set_layout_engine("none")  # the places that it has found hold here too
            figure.savefig(paths[1], dpi=PNG_DPI)
    width = round(figure.get_figwidth() * 96)
    return PageFigure(chart, inline(document, chart.name, f"{chart.title}. {chart.reading}"), width), paths


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another place") from error
