"""`slipstream skip`: skip sets, the sub-layers that `layer-skip` leaves out while it drafts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli import options

if TYPE_CHECKING:
    from slipstream.skipping.skip_set import SkipSet

app = typer.Typer(name="skip", no_args_is_help=True, help="Skip sets: the sub-layers that layer-skip leaves out.")


@app.callback()
def skip() -> None:
    """Skip sets: the sub-layers that layer-skip leaves out while it drafts."""


@app.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A skip set (JSON).")],
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Show which sub-layers a skip set leaves out, and where it comes from.

    Example: slipstream skip show my-skip-set.json
    """
    from slipstream.skipping.skip_set import SkipSet

    skip_set = SkipSet.load(file)
    if as_json:
        print(json.dumps(json.loads(skip_set.to_json())))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_picture(skip_set), markup=False)
    for name, value in skip_set.provenance.items():
        console.print(f"{name}: {value}", markup=False, style="dim")


def _picture(skip_set: SkipSet) -> str:
    """Two rows of one character per layer: # runs in the draft, . is skipped."""
    rows = [f"target {skip_set.target or 'any'} of {skip_set.num_layers} layers; # runs, . is skipped"]
    for name, skipped in (("attention", skip_set.attention), ("mlp", skip_set.mlp)):
        marks = "".join("." if layer in skipped else "#" for layer in range(skip_set.num_layers))
        rows.append(f"{name:<10}{marks}  {len(skipped)} skipped: {', '.join(map(str, skipped)) or 'none'}")
    return "\n".join(rows)
