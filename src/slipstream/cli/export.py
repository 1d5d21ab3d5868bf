"""`slipstream export`: what other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import slipstream
from slipstream.cli import options
from slipstream.cli.outputs import check_out_folder

app = typer.Typer(name="export", no_args_is_help=True, help="Files for other programs.")


@app.callback()
def export() -> None:
    """Files for other programs."""


@app.command(name="custom-generate")
def custom_generate(
    folder: Annotated[
        Path,
        typer.Argument(callback=check_out_folder, metavar="DIR", help="Made if need be; may be a model's folder."),
    ],
    verbose: options.Verbose = False,
) -> None:
    """Write the folder from which transformers' `generate` decodes speculatively.

    It holds a few lines that call this package, which must be installed where it is used.

    Example: slipstream export custom-generate fast, then in Python
    model.generate(**inputs, custom_generate="fast", trust_remote_code=True)
    """
    from slipstream.hf_folder import write_folder

    for file in write_folder(folder, slipstream.__version__):
        print(file)
