"""What `slipstream certify` shows: a certificate in words and tables that a stranger understands.

It is made of the certificate's record alone, so one that is read from a file looks the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from slipstream.records.certificate import (
    FAULT,
    INCONCLUSIVE,
    LOSSLESS,
    ROUNDING,
    CertificateRecord,
    CertifiedAnswer,
    Difference,
    Distribution,
    Total,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MOST_DIFFERENCES = 20
"""Lines of the list of differences; all are in the JSON certificate."""

LEGEND = (
    "row by row: plain decoding, one row a pass. same shape: plain decoding in passes shaped exactly as the method's, "
    "where kernels round alike. transformers: its own generate. tokens: compared, up to the first difference."
)

MEANING: dict[str, str] = {
    LOSSLESS: "Every answer has the same tokens as plain decoding.",
    ROUNDING: (
        "Some answers differ from plain decoding in passes of another shape, or from transformers', because those "
        "round differently in this dtype. None differs by anything else."
    ),
    FAULT: "The method changes the output in a way that rounding does not explain. Please report it.",
    INCONCLUSIVE: "No fault was found, but what was tested does not prove that there is none.",
}
_STYLES: dict[str, str] = {
    LOSSLESS: "bold green",
    ROUNDING: "bold green",
    FAULT: "bold red",
    INCONCLUSIVE: "bold yellow",
}


def show(certificate: CertificateRecord, tokenizer: Any = None) -> None:
    """Print it. tokenizer: shows differing tokens as text."""
    from rich.console import Console

    console = Console(highlight=False)
    shared = f", {certificate.num_processes} processes" if certificate.num_processes > 1 else ""
    console.print(
        f"{certificate.method} on {certificate.model} ({certificate.dtype} on {certificate.device}{shared}, "
        f"{certificate.hardware})\n",
        style="bold",
        markup=False,
    )
    console.print("Token identity: answers that equal plain decoding's, token for token", style="bold")
    console.print(_identity_table(certificate))
    console.print(f"{LEGEND}\n{_floor(certificate)}\n", style="dim", markup=False)
    _show_differences(console, certificate, tokenizer)
    if (law := certificate.distribution).tests:
        console.print(
            f"Distribution: the first {law.num_tokens} tokens of samples against the model's own law", style="bold"
        )
        console.print(_law_table(law))
        console.print(
            f"p: how often a lossless method would look as bad or worse; below {law.alpha:g}, corrected for the number "
            "of tests, it is a fault. finds: the smallest share of probability in the wrong place that would have been "
            "found 9 times in 10.\n",
            style="dim",
        )
    console.print(f"Verdict: {certificate.verdict}", style=_STYLES[certificate.verdict])
    console.print(MEANING[certificate.verdict])
    for line in [*certificate.faults, *certificate.doubts]:
        console.print(f"- {line}", markup=False)
    console.print(f"Took {certificate.wall_s:.0f} s.", style="dim")


def _identity_table(certificate: CertificateRecord) -> Table:
    table = _table("decoding", "against", "answers", "tokens", "same", "rounding", "doubt", "FAULT")
    for name, totals in (("greedy", certificate.greedy), ("seeded", certificate.seeded)):
        for total in totals:
            first = total is totals[0]
            table.add_row(name if first else "", *_identity_cells(total), end_section=total is totals[-1])
    return table


def _identity_cells(total: Total) -> list[str]:
    rulings = total.rulings
    marked = {
        "fault": f"[bold red]{rulings['fault']}[/bold red]" if rulings["fault"] else "0",
        "undecided": f"[yellow]{rulings['undecided']}[/yellow]" if rulings["undecided"] else "0",
    }
    return [
        total.reference,
        str(total.num_answers),
        str(total.num_tokens),
        str(rulings["identical"]),
        str(rulings["rounding"]),
        marked["undecided"],
        marked["fault"],
    ]


def _floor(certificate: CertificateRecord) -> str:
    floor, yardstick = certificate.floor, certificate.yardstick
    known = f"Between its own passes of one row and of many, transformers rounds logits by up to {yardstick:.2g} here."
    if floor.is_zero:
        return (
            f"In one shape, no bit of a row depended on the rows beside it ({floor.num_passes} passes were run again "
            f"with other content): there, any difference at all is a fault. {known}"
        )
    return (
        f"In one shape, a row's logits moved by up to {floor.logits:.2g} with the rows beside it ({floor.num_passes} "
        f"passes were run again with other content). {known}"
    )


def _show_differences(console: Console, certificate: CertificateRecord, tokenizer: Any) -> None:
    differences = list(_differences(certificate))
    if not differences:
        return
    console.print("First differences", style="bold")
    table = _table("prompt", "seed", "against", "token", "ours / reference's", "margin", "ruling")
    for answer, name, divergence in differences[:MOST_DIFFERENCES]:
        table.add_row(
            str(answer.prompt_id),
            "greedy" if answer.seed is None else str(answer.seed),
            name,
            str(divergence.index),
            f"{_shown(divergence.token, tokenizer)} / {_shown(divergence.reference_token, tokenizer)}",
            f"{divergence.margin:.3g}",
            answer.references[name].ruling,
        )
    console.print(table)
    hidden = len(differences) - MOST_DIFFERENCES
    more = f" {hidden} more are in the JSON certificate." if hidden > 0 else ""
    console.print(f"margin: by how much the reference's token beats its second best.{more}\n", style="dim")


def _differences(certificate: CertificateRecord) -> Iterator[tuple[CertifiedAnswer, str, Difference]]:
    for answer in certificate.answers:
        for name, against in answer.references.items():
            if against.divergence is not None:
                yield answer, name, against.divergence


def _shown(token: int | None, tokenizer: Any) -> str:
    from rich.markup import escape

    if token is None:
        return "(end)"
    return str(token) if tokenizer is None else escape(repr(tokenizer.decode([token])))


def _law_table(law: Distribution) -> Table:
    table = _table("verification", "samples", "cells", "accepted", "p", "corrected", "finds")
    for test in law.tests:
        adjusted = f"{test.adjusted_p_value:.3g}"
        table.add_row(
            test.rule,
            str(test.num_samples),
            str(test.num_cells),
            f"{test.num_accepted} of {test.num_drafted}",
            f"{test.p_value:.3g}",
            f"[bold red]{adjusted}[/bold red]" if test.adjusted_p_value < law.alpha else adjusted,
            f"{test.smallest_bias:.0%}",
        )
    return table


def _table(*headings: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for heading in headings:
        words = heading in ("decoding", "verification", "against", "ours / reference's", "ruling")
        table.add_column(heading, justify="left" if words else "right")
    return table
