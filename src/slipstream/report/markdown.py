"""Tables as Markdown, in the dialect of code hosts."""

from __future__ import annotations

from collections.abc import Iterable

from slipstream.report.names import MISSING
from slipstream.report.tables import Column, Table, header_groups


def markdown(table: Table) -> str:
    """The table; the columns of a group share one, their values parted by strokes. The first column is set as code."""
    groups = header_groups(table.columns)
    lines = [_line(group or columns[0].heading for group, columns in groups)]
    lines.append("|---" + "|---:" * (len(groups) - 1) + "|")
    for row in table.rows:
        first, *others = [_cell([column.text(row) for column in columns]) for _, columns in groups]
        lines.append(_line([f"`{first}`", *others]))
    return "\n".join(lines)


def reading(table: Table) -> str:
    """What the values of a group's columns are, in order, as in "speed / tau"; empty where none is shared."""
    shared = (columns for group, columns in header_groups(table.columns) if group)
    return next((_headings(columns) for columns in shared), "")


def _headings(columns: Iterable[Column]) -> str:
    return " / ".join(column.heading for column in columns)


def _cell(texts: list[str]) -> str:
    return MISSING if set(texts) == {MISSING} else " / ".join(texts)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
