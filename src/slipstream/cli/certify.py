"""`slipstream certify`: does a method change what this model says, on this device, in this dtype?"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slipstream.bench.settings import JUDGES
from slipstream.certify.options import CertifyOptions, Warping
from slipstream.cli import options
from slipstream.cli.answering import note
from slipstream.cli.from_settings import options_from_settings
from slipstream.cli.loading import first_alone_speaks, is_first, load
from slipstream.cli.options import given, parse_further
from slipstream.cli.outputs import check_out_file
from slipstream.errors import InputError, LosslessnessError, unknown_choice

if TYPE_CHECKING:
    from slipstream import Model
    from slipstream.certify import CertifySettings
    from slipstream.prompts import Prompt
    from slipstream.records.certificate import CertificateRecord

TEST = "Test"
DEFAULT_PROMPTS = 4
JUDGED_PARAMETERS = 1e9
_NOTE_EVERY_S = 10.0  # where there is no bar


@options_from_settings(
    panels={
        TEST: ("max_new_tokens", "num_seeds", "first_seed", "num_samples"),
        options.SAMPLING: ("temperature", "top_p", "top_k", "min_p"),
    },
    flags={
        "max_new_tokens": "--max-new-tokens,-n",
        "num_seeds": "--seeds",
        "first_seed": "--seed",
        "num_samples": "--samples",
        "temperature": "--temperature,-t",
    },
    metavars={"num_seeds": "N", "num_samples": "N"},
)
def certify(
    *,
    model: options.Model = "tiny",
    drafter: options.Method = "auto",
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FILE",
            rich_help_panel=TEST,
            help="Questions, in the jsonl layout of EAGLE and Spec-Bench; default: the shipped prompts.",
        ),
    ] = None,
    num_prompts: Annotated[
        int | None,
        typer.Option(
            "--prompts",
            metavar="N",
            rich_help_panel=TEST,
            help="The first N prompts.",
            show_default=str(DEFAULT_PROMPTS),
        ),
    ] = None,
    asked: CertifyOptions,
    verification: Annotated[
        str | None,
        typer.Option(
            "--verification",
            metavar="RULE",
            rich_help_panel=TEST,
            help="Test the distribution of this rule alone: coupled or rejection; default: both.",
        ),
    ] = None,
    judge: Annotated[
        str,
        typer.Option(
            "--judge",
            metavar="WHEN",
            rich_help_panel=TEST,
            help="Settle differences in doubt by a run in float64: auto (up to 1e9 parameters), float64, none.",
        ),
    ] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            callback=check_out_file,
            metavar="FILE",
            rich_help_panel=TEST,
            help="Write the certificate, as JSON.",
        ),
    ] = None,
    warping: Warping,
    drafting: options.DraftingOptions,
    option: options.Further = None,
    loading: options.LoadingOptions,
    tp_size: options.TpSize = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Test whether a method is lossless on your model, device and dtype.

    Greedy and seeded answers are compared, token by token, with plain decoding in passes of one row, with plain
    decoding in passes of the very shape that the method used (there not one bit may differ), and with transformers'
    own `generate`. Then many samples of three tokens are compared with the model's own probabilities.

    The verdict is lossless, lossless up to rounding, FAULT or inconclusive. The exit code is 0 for the first two and 1
    for the others. How a difference is judged stands in docs/certificate.md.

    With --tp-size N, under torchrun, N processes share the target; the first one prints, and its exit code counts.

    Example: slipstream certify -m tiny -d eagle2 --dtype bfloat16 --out certificate.json
    """
    from slipstream.records.certificate import certificate_json, write_certificate

    if judge not in JUDGES:
        raise unknown_choice("judge", judge, JUDGES)
    if out is not None and not out.parent.is_dir():
        raise InputError(f"the folder of --out {out} does not exist; make it first")
    prompts = _chosen_prompts(data, num_prompts)
    settings = _settings(asked, warping, verification)

    def load_in(wanted: str | None) -> Model:
        return load(model, drafter, option, **asdict(drafting), **{**asdict(loading), "dtype": wanted}, tp_size=tp_size)

    with first_alone_speaks(tp_size):
        note(f"loading {model} for {drafter}")
        loaded = load_in(loading.dtype)
        arbiter = _arbiter(loaded, judge, load_in)
        certificate = _certify(loaded, model, prompts, settings, arbiter, asdict(drafting), option)
    if not is_first(tp_size):
        return
    if out is not None:
        write_certificate(certificate, out)
    if as_json:
        print(json.dumps(certificate_json(certificate)))
    else:
        from slipstream.cli.certify_report import show

        show(certificate, loaded.tokenizer)
    if out is not None:
        note(f"wrote {out}")
    _raise_unless_passed(certificate)


def _chosen_prompts(data: Path | None, number: int | None) -> list[Prompt]:
    from slipstream.prompts import load_prompts, read_questions

    prompts = load_prompts() if data is None else read_questions(data, data.stem)
    if number is not None and not 1 <= number <= len(prompts):
        raise InputError(f"--prompts is {number}; it must lie from 1 to {len(prompts)}")
    return prompts[: DEFAULT_PROMPTS if number is None else number]


def _settings(asked: CertifyOptions, warping: Warping, rule: str | None) -> CertifySettings:
    from slipstream.certify import CertifySettings

    return CertifySettings(**asdict(asked), warping=warping, **given(rules=None if rule is None else (rule,)))


def _arbiter(loaded: Model, judge: str, load_in: Callable[[str], Model]) -> Callable[[], Model] | None:
    """What loads the same in float64, once; None where that was not asked for or takes too much memory."""
    from functools import cache

    small = loaded.target.model.num_parameters() <= JUDGED_PARAMETERS
    if judge == "none" or (judge == "auto" and not small):
        return None

    @cache
    def in_float64() -> Model:
        note("a difference is in doubt: loading in float64")
        return load_in("float64")

    return in_float64


def _certify(
    loaded: Model,
    name: str,
    prompts: list[Prompt],
    settings: CertifySettings,
    in_float64: Callable[[], Model] | None,
    drafting: dict[str, Any],
    option: list[str] | None,
) -> CertificateRecord:
    import torch

    from slipstream.certify import Certification
    from slipstream.records.machine import provenance
    from slipstream.target.sharding import num_sharing

    certification = Certification(model=loaded, prompts=prompts, settings=settings, in_float64=in_float64)
    about = {
        **provenance(loaded.target, name, sys.argv),
        "runtime": loaded.target.executor.name,
        "num_processes": num_sharing(),
        "num_threads": torch.get_num_threads(),
        "options": {name: _shown(value) for name, value in {**given(**drafting), **parse_further(option)}.items()},
    }
    with _progress(certification.parts) as advance:
        return certification.run(about, advance).record()


def _shown(value: Any) -> Any:
    """An absolute path by its last part, as in the command."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


@contextmanager
def _progress(parts: dict[str, int]) -> Iterator[Callable[[str], None]]:
    """Bars on stderr with the time left, one for each part; a line now and then where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {part: bars.add_task(part, total=total, start=False) for part, total in parts.items()}
        began, last = dict[str, float](), time.perf_counter()
        noted = last
        done = dict.fromkeys(parts, 0)
        bars.start_task(tasks[next(iter(parts))])

        def advance(part: str) -> None:
            nonlocal last, noted
            began.setdefault(part, last)  # when the part before it ended
            last = time.perf_counter()
            done[part] += 1
            bars.advance(tasks[part])
            if done[part] == parts[part]:
                if (following := _after(part, parts)) is not None:
                    bars.start_task(tasks[following])
            elif last - noted < _NOTE_EVERY_S:
                return
            if not console.is_terminal:
                noted = last
                left_s = (last - began[part]) / done[part] * (parts[part] - done[part])
                left = f", about {left_s:.0f} s left for the rest of them" if left_s else ""
                note(f"{done[part]} of {parts[part]} {part}{left}")

        yield advance


def _after(part: str, parts: dict[str, int]) -> str | None:
    names = list(parts)
    place = names.index(part) + 1
    return names[place] if place < len(names) else None


def _raise_unless_passed(certificate: CertificateRecord) -> None:
    from slipstream.records.certificate import PASSING

    if certificate.verdict in PASSING:
        return
    is_fault = bool(certificate.faults)
    found, remedy = (
        (certificate.faults, "Please report it.") if is_fault else (certificate.doubts, "Nothing was proved.")
    )
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    raise LosslessnessError(f"{certificate.verdict}: {found[0]}{more}. {remedy}")
