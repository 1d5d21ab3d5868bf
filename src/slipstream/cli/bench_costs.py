"""`slipstream bench costs`: what passes and draft levels cost on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slipstream.cli import options
from slipstream.cli.answering import note
from slipstream.cli.from_settings import options_from_settings
from slipstream.errors import InputError

if TYPE_CHECKING:
    from slipstream.bench.costs import MachineCosts

FORMATS = (".png", ".svg", ".pdf")


@options_from_settings()
def costs(
    *,
    model: options.Model = "tiny",
    drafter: options.Method = "plain",
    draft: options.Draft = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again, whatever is kept.")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw them too: a .png, .svg or .pdf.")
    ] = None,
    loading: options.LoadingOptions,
    option: options.Further = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Show what a target's passes cost by rows and context, and a drafter's levels by width.

    Automatic draft sizes go by these. They are measured once for a target, machine, dtype, runtime and number of
    threads, in about three seconds (a slow target: in the time of a dozen plain passes), and kept in the user's cache.

    Example: slipstream bench costs -m smollm2 -d eagle2 --plot costs.svg
    """
    from slipstream.bench.costs import machine_costs
    from slipstream.cli.loading import load

    if plot is not None:
        _check_plot(plot)
    found = machine_costs(load(model, drafter, option, draft=draft, **asdict(loading)), fresh=fresh)
    if plot is not None:
        _draw(found, plot)
    if as_json:
        print(json.dumps(found.to_dict()))
    else:
        _print(found)


def _check_plot(file: Path) -> None:
    from slipstream.search.plots import INSTALL, have_matplotlib

    if file.suffix not in FORMATS:
        raise InputError(
            f"--plot {file} ends in {file.suffix or 'nothing'}; give a file that ends in .png, .svg or .pdf"
        )
    if not file.absolute().parent.is_dir():
        raise InputError(f"there is no folder {file.parent} for --plot; make it first")
    if not have_matplotlib():
        raise InputError(f"--plot needs matplotlib, which is not installed; run: {INSTALL}")


def _draw(found: MachineCosts, file: Path) -> None:
    from slipstream.report.machine_costs import save_machine_costs

    levels = {
        "first": [(one.width, one.first_s) for one in found.levels],
        "each further one": [(one.width, one.further_s) for one in found.levels],
    }
    save_machine_costs(dict(found.passes.by_context), levels if found.levels else {}, file)
    note(f"wrote {file}")


def _print(found: MachineCosts) -> None:
    from rich.console import Console

    from slipstream.runtime.costs import ROWS

    console = Console(highlight=False)
    contexts = [context for context, _ in found.passes.by_context]
    plain_s = found.passes.seconds(1, contexts[0])
    passes = _table("rows", *(heading for one in contexts for heading in (f"ms after {one} tokens", "plain passes")))
    for rows in ROWS:
        seconds = [found.passes.seconds(rows, context) for context in contexts]
        passes.add_row(str(rows), *(cell for one in seconds for cell in (f"{1e3 * one:.2f}", f"{one / plain_s:.2f}")))
    console.print(passes)
    if found.levels:
        levels = _table("width", "ms of the first level", "ms of each further one")
        for one in found.levels:
            levels.add_row(str(one.width), f"{1e3 * one.first_s:.2f}", f"{1e3 * one.further_s:.2f}")
        console.print(levels)
    machine = ", ".join(
        f"{name} {_plain(value)}" for name, value in found.machine.items() if name != "format" and value
    )
    console.print(machine, style="dim", soft_wrap=True, markup=False)
    how = f"measured in {found.measured_s:.1f} s" if found.measured_s else f"read from {found.file}"
    way = "medians of rounds in which sizes take turns; other sizes lie on the line between"
    console.print(f"{how}; {way}", style="dim", soft_wrap=True, markup=False)


def _plain(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def _table(*headings: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table
