"""`slipstream skip`: skip sets, the sub-layers that `layer-skip` leaves out while it drafts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli import options
from slipstream.cli.skip_picture import print_skip_set
from slipstream.cli.skip_search import search

app = typer.Typer(name="skip", no_args_is_help=True, help="Skip sets: the sub-layers that layer-skip leaves out.")


@app.callback()
def skip() -> None:
    """Skip sets: the sub-layers that layer-skip leaves out while it drafts."""


app.command()(search)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A skip set (JSON).")],
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Show which sub-layers a skip set leaves out, how it was found, and its figures.

    Example: slipstream skip show my-skip-set.json
    """
    from slipstream.skipping.skip_set import SkipSet

    skip_set = SkipSet.load(file)
    if as_json:
        print(json.dumps(json.loads(skip_set.to_json())))
    else:
        print_skip_set(skip_set)
