"""`slipstream methods`: what there is to choose from with `-d`."""

from __future__ import annotations

import json

from slipstream.cli import options


def methods(as_json: options.Json = False, verbose: options.Verbose = False) -> None:
    """List the decoding methods.

    Example: slipstream methods --json
    """
    from slipstream.methods.registry import METHODS

    if as_json:
        fields = ("name", "summary", "needs", "paper", "options", "runs_on_demo")
        print(json.dumps([{field: getattr(method, field) for field in fields} for method in METHODS.values()]))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Methods, all of them lossless", title_justify="left", show_lines=True)
    table.add_column("-d", no_wrap=True, style="bold")
    table.add_column("what it is", overflow="fold", ratio=3)
    table.add_column("what it needs", ratio=2)
    for method in METHODS.values():
        source = "" if method.paper == "-" else f"\n[dim]{method.paper}[/dim]"
        table.add_row(method.name, method.summary + source, method.needs)
    Console(highlight=False).print(table)
