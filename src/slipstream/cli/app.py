"""The root command: which commands there are, and how an error becomes one line and an exit code."""

from __future__ import annotations

import errno
import sys
import traceback
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import slipstream
from slipstream.cli import answer, bench, certify, chat, demo, export, generate, heads, methods, serve, skip, train
from slipstream.cli.options import VERBOSE, Verbose
from slipstream.errors import InputError, SlipstreamError

_UNWRITABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENAMETOOLONG,
)
EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


class ErrorLines(TyperGroup):
    """Turns errors raised on purpose into one line on stderr: exit code 2 if the user can mend it, else 1.

    A place that cannot be written is the user's to mend, too. `-v` shows the traceback. Any other exception is a bug
    of ours and keeps its traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command. The context is typer's own, whose class differs between its versions."""
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except SlipstreamError as error:
                if ctx.meta.get(VERBOSE):
                    traceback.print_exception(error)
                _say(f"error: {' '.join(str(error).split())}")
                raise typer.Exit(EXIT_USAGE if isinstance(error, InputError) else EXIT_FAILURE) from error
            except OSError as error:
                if error.filename is None or error.errno not in _UNWRITABLE:
                    raise
                if ctx.meta.get(VERBOSE):
                    traceback.print_exception(error)
                _say(f"error: cannot write {error.filename}: {error.strerror}")
                raise typer.Exit(EXIT_USAGE) from error
            except KeyboardInterrupt as error:
                _say("interrupted")
                raise typer.Exit(EXIT_INTERRUPTED) from error


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _show_warning(message: Warning | str, *place: Any, **more: Any) -> None:
    _say(f"warning: {message}")


def _print_version(value: bool) -> None:
    if value:
        print(f"slipstream {slipstream.__version__}")
        raise typer.Exit


app = typer.Typer(
    name="slipstream",
    cls=ErrorLines,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Lossless speculative decoding: faster text from any transformers model, token for token the same.

    Start with `slipstream demo`: drafting methods on a small model that ships with the package.
    """


app.command()(generate.generate)
app.command()(chat.chat)
app.command(cls=answer.OptionalAddress)(answer.answer)
app.command()(demo.demo)
app.command()(methods.methods)
app.command()(serve.serve)
app.command()(certify.certify)
app.add_typer(bench.app, name="bench")
app.add_typer(skip.app, name="skip")
app.add_typer(train.app, name="train")
app.add_typer(heads.app, name="heads")
app.add_typer(export.app, name="export")


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        app(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else EXIT_FAILURE
    return 0
