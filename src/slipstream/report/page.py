"""The HTML page of a record: one file with everything in it, to be read without a network and without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from slipstream.records.schema import Record
from slipstream.report import summary
from slipstream.report.charts import INTRODUCTIONS, SECTIONS, Chart
from slipstream.report.names import count, task_name, temperature_name
from slipstream.report.tables import Table, detail_tables, eagle_table, header_groups, spec_bench_table

TEMPLATE = "page.html.jinja"


@dataclass(frozen=True, slots=True)
class PageFigure:
    """A figure and its inline SVG."""

    chart: Chart
    svg: str
    width: int
    """CSS pixels at which its text has its own size."""


def page(record: Record, figures: Sequence[PageFigure]) -> str:
    """The whole page. figures: in the order of the page; they stand under the headings of their charts.

    Everything that comes from the record, such as tokens, is escaped.
    """
    template = _environment().get_template(TEMPLATE)
    return template.render(
        record=record,
        run=record.run,
        setting=summary.setting(record),
        provenance=summary.provenance(record),
        best=summary.best_here(record),
        headlines=summary.headlines(record),
        notes=summary.notes(record),
        tables=[(one, _tables(record, one)) for one in record.temperatures],
        sections=[(name, [one for one in figures if one.chart.section == name]) for name in SECTIONS],
        introductions=INTRODUCTIONS,
        css=_text("page.css"),
        script=_text("page.js"),
    )


def _tables(record: Record, temperature: float) -> list[Table]:
    return [
        eagle_table(record, temperature),
        spec_bench_table(record, temperature),
        *(table for table in detail_tables(record, temperature) if table.rows),
    ]


def _text(name: str) -> Markup:
    """A file of this package that goes into the page as it is."""
    return Markup(resources.files("slipstream.report").joinpath(name).read_text(encoding="utf-8"))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("slipstream.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    functions: dict[str, Any] = {
        "count": count,
        "task_name": task_name,
        "temperature_name": temperature_name,
        "header_groups": header_groups,
        "svg": Markup,
    }
    environment.globals.update(functions)
    return environment
