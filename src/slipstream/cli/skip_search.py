"""`slipstream skip search`: find a skip set for a target and a task."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from slipstream.cli import options
from slipstream.cli.answering import note
from slipstream.cli.from_settings import options_from_settings
from slipstream.cli.outputs import check_out_file
from slipstream.cli.skip_picture import print_skip_set
from slipstream.errors import ArtifactError, InputError, SkipSetError, unknown_choice
from slipstream.search.options import DraftOptions, SearchOptions

if TYPE_CHECKING:
    from slipstream.search.prompts import Messages
    from slipstream.search.search import SkipSearch, Trial
    from slipstream.skipping.skip_set import SkipSet

DRAFT, SEARCH, LIMITS = "The draft that the set is for", "The search", "What must be kept"


@options_from_settings(
    panels={
        SEARCH: (
            "sampler",
            "starting_points",
            "num_prompts",
            "max_new_tokens",
            "temperature",
            "rows",
            "repeats",
            "seed",
        ),
        LIMITS: ("keep_first", "keep_last", "max_skipped"),
        DRAFT: ("tree", "width", "depth", "total", "length", "threshold"),
    },
    flags={"max_new_tokens": "--max-new-tokens,-n", "temperature": "--temperature,-t"},
    metavars={"objective": "KIND", "sampler": "KIND", "tree": "SHAPE"},
)
def search(
    *,
    model: options.Model,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            metavar="NAME",
            help="default, code, summarisation, chat, maths, ...: shipped prompts, and the set's name.",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help="Your prompts: JSON lines with `turns` or `messages`."),
    ] = None,
    asked: SearchOptions,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            callback=check_out_file,
            metavar="FILE",
            help="Write the best set here too (JSON), and its pictures.",
        ),
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option(
            "--study",
            metavar="FILE",
            rich_help_panel=SEARCH,
            help="sqlite file of the trials, to resume and to share; default: one per target, task and settings.",
        ),
    ] = None,
    warm_start: Annotated[
        Path | None,
        typer.Option(
            "--warm-start", metavar="FILE", rich_help_panel=SEARCH, help="An earlier study or a skip set to begin with."
        ),
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option(
            "--plot", metavar="FORMAT", rich_help_panel=SEARCH, help="svg, png or none; default: svg with --out."
        ),
    ] = None,
    draft: DraftOptions,
    loading: options.LoadingOptions,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Search which sub-layers to skip while drafting, for a target, a task and this device.

    The best set is kept under the task's name for this target: `--skip-set code` finds it, and layer-skip takes the
    one named default by itself. A set of that name that this search too finds better stays. At the end the best set
    is timed beside plain decoding; one that is slower is not kept, and it is said that none pays on this machine.
    The same command goes on where it was interrupted; several may run at once.

    Example: slipstream skip search -m Qwen/Qwen3-8B --task code --trials 300 --out code.json
    """
    from slipstream.search.search import SkipSearch, study_identity
    from slipstream.search.settings import SearchSettings, make_shape
    from slipstream.skipping import library

    settings = SearchSettings(**asdict(asked), shape=make_shape(draft))
    kind = _plot_format(plot, out)
    if out is not None and not out.parent.is_dir():
        raise InputError(f"there is no folder {out.parent} for --out; make it first")
    name, messages = _prompts(task, prompts)
    loaded = _load(model, loading)
    folder = library.found_folder(loaded.target.hash)
    study_file = study or folder / f"{name}.{study_identity(loaded.target, settings, messages)}.study"
    found = SkipSearch(loaded, messages, settings, study_file, task=name, warm_start=warm_start)
    with _progress(settings.trials) as show:
        show.preparing()
        found.prepare()
        for trial in found.trials():
            show.tried(trial)
    if settings.tree == "dynamic":
        note("calibrating the confidence of drafts")
    best, pays = _compared(found, found.calibrated())
    files = []
    if pays and _may_keep(found, best, name):
        files.append(library.keep(best, name))
        note(f"kept as {name!r}: use it with `slipstream generate -m {model} -d layer-skip --skip-set {name}`")
    if out is not None:
        best.save(out)
        files.append(out)
        files += _draw(found, out, kind)
    for file in files:
        note(f"wrote {file}")
    if as_json:
        print(json.dumps(json.loads(best.to_json())))
    else:
        print_skip_set(best)


def _compared(found: SkipSearch, best: SkipSet) -> tuple[SkipSet, bool]:
    """The best set with how fast it really is, and whether it is faster than plain decoding. Says so in one line."""
    note("timing the best set beside plain decoding")
    against = found.against_plain(best)
    times = f"{against.speedup:.2f} times plain decoding's speed"
    where = f"{against.low:.2f} to {against.high:.2f} on {against.answers} answers; its costs allow {against.bound:.2f}"
    pays = against.speedup > 1
    if pays:
        note(f"the best set decodes at {times} ({where})")
    else:
        tried = len(found.study.done())
        note(f"no set pays on this machine with this draft: the best of {tried} decodes at {times} ({where}); not kept")
    return replace(best, provenance={**best.provenance, "against_plain": against.to_dict()}), pays


def _prompts(task: str | None, file: Path | None) -> tuple[str, list[Messages]]:
    """The set's name, and what to search on."""
    from slipstream.search.prompts import read_prompts, task_prompts
    from slipstream.skipping.library import DEFAULT, canonical, check_name

    if file is None:
        name = canonical(task or DEFAULT)
        return name, task_prompts(name)
    return check_name(canonical(task or file.stem)), read_prompts(file)


def _may_keep(found: SkipSearch, best: SkipSet, name: str) -> bool:
    """Whether to keep the best set under `name`: not where the set of that name is better by this search's measure."""
    from slipstream.skipping import library

    if name not in library.names(found.target.hash):
        return True
    try:
        there = library.find(name, found.target.hash)
    except (ArtifactError, SkipSetError) as error:
        note(f"replacing the set {name!r}, which is damaged: {error}")
        return True
    if (there.attention, there.mlp) == (best.attention, best.mlp):
        return True
    ours, theirs = found.value(best), found.value(there)
    assert ours is not None
    if theirs is None:
        note(f"the new set takes the place of {name!r} as it was, which skips what this search may not skip")
    elif theirs > ours:
        note(
            f"not kept: the set {name!r} that is there already is better by this search's own measure "
            f"({theirs:.1f} tokens/s, the new one {ours:.1f}); the same command with --out FILE writes the new one"
        )
        return False
    else:
        note(f"the new set ({ours:.1f} tokens/s) takes the place of {name!r} as it was ({theirs:.1f} by this search)")
    return True


def _plot_format(asked: str | None, out: Path | None) -> str | None:
    """The format of the pictures, or None for none; they need a file to lie beside."""
    from slipstream.search.plots import FORMATS, INSTALL, have_matplotlib

    if asked not in (None, "none", *FORMATS):
        raise unknown_choice("plot", str(asked), ("none", *FORMATS))
    if asked in FORMATS:
        if out is None:
            raise InputError("--plot writes beside the file of --out; give --out too")
        if not have_matplotlib():
            raise InputError(f"--plot {asked} needs matplotlib, which is not installed; run: {INSTALL}")
        return asked
    if asked is None and out is not None:
        if have_matplotlib():
            return FORMATS[0]
        note(f"no pictures, for matplotlib is not installed; for them run: {INSTALL}")
    return None


def _draw(found: SkipSearch, out: Path, kind: str | None) -> list[Path]:
    from slipstream.search.plots import write_plots

    if kind is None:
        return []
    trials = found.study.done()
    origins = [trial.user_attrs.get("origin", "sampler") for trial in trials]
    values = [trial.value or 0.0 for trial in trials]
    return write_plots(found.best(), values, origins, 1 / found.costs.plain, out, kind)


def _load(model: str, loading: options.LoadingOptions) -> Any:
    from slipstream.cli.loading import load
    from slipstream.search.study import import_optuna

    import_optuna()  # before minutes may go into loading the target
    return load(model, "plain", **asdict(loading))


class _Shown(Protocol):
    def preparing(self) -> None: ...

    def tried(self, trial: Trial) -> None: ...


@contextmanager
def _progress(num_trials: int) -> Iterator[_Shown]:
    """A bar on stderr with the best so far; a line for each new best where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=num_trials)

        class Shown:
            def preparing(self) -> None:
                bar.update(task, description="the target answers, its sub-layers are timed")
                if not console.is_terminal:
                    note("the target answers, its sub-layers are timed")

            def tried(self, trial: Trial) -> None:
                bar.update(task, completed=trial.number, description=_line(trial))
                if trial.value >= trial.best and not console.is_terminal:
                    note(f"trial {trial.number}: {_line(trial)}")

        yield Shown()


def _line(trial: Trial) -> str:
    tau = f", tau {trial.figures['tau']:.2f}" if "tau" in trial.figures else ""
    times = f"{trial.best / trial.plain:.2f} times plain"
    return f"best {trial.best:.1f} tokens/s, {times}; last {trial.value:.1f}{tau} ({trial.origin})"
