"""What `slipstream demo` shows and records in the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import slipstream
from slipstream.bench.comparison import PLAIN, Answer, Comparison, Totals, summarise
from slipstream.files.packaged import TINY
from slipstream.report.names import count

if TYPE_CHECKING:
    from rich.table import Table

SAMPLES = {TINY: ("code", "maths")}
"""Kinds of which one answer is shown in full, by model; of others every conversation is shown."""

LONGEST_SHOWN = 240
"""Characters of a prompt."""

LEGEND = (
    "tau: tokens per target pass. accept rate: share of the drafted tokens that were kept; of a tree, one path at "
    "most. x plain: speed against plain decoding in this run. identical: answers with the same token ids as plain "
    "decoding's; rounding: those that differ in this dtype but not in float64."
)
OF_TINY = " At T=0 a model as small as this one repeats itself, which is easy to draft."


@dataclass(frozen=True, slots=True)
class DemoRun:
    """A finished run of the demo."""

    model: str
    comparison: Comparison
    answers: Sequence[Answer]
    num_asked: int
    """Prompts asked for; fewer are done if the time limit came first."""
    wall_s: float
    """From the start of loading to the last answer."""

    @property
    def num_prompts(self) -> int:
        """Prompts done."""
        return len({answer.prompt.id for answer in self.answers})

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the setting, a row for each method and temperature, and every answer."""
        return {
            "model": self.model,
            "slipstream": slipstream.__version__,
            "device": self.device,
            "dtype": self.dtype,
            "num_threads": self.num_threads,
            "seed": self.comparison.seed,
            "max_new_tokens": self.comparison.max_new_tokens,
            "num_prompts": self.num_prompts,
            "wall_s": self.wall_s,
            "methods": [row.to_dict() for row in summarise(self.answers)],
            "answers": [answer.to_dict() for answer in self.answers],
        }

    @property
    def device(self) -> str:
        """Where the target ran."""
        return str(self.comparison.models[PLAIN].target.device)

    @property
    def num_threads(self) -> int:
        """Of PyTorch on the CPU."""
        import torch

        return torch.get_num_threads()

    @property
    def dtype(self) -> str:
        """What the target ran in."""
        return str(self.comparison.models[PLAIN].target.dtype).removeprefix("torch.")


def show(run: DemoRun) -> None:
    """Print two sample answers, the table and how long it took."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(f"Answers of {run.model}, decoded plainly at temperature 0:\n", style="dim")
    for sample in _samples(run.model, run.answers):
        console.print(f"{sample.prompt.kind}: {_shortened(sample)}", style="bold", markup=False)
        console.print(sample.output.text.strip() + "\n", markup=False)
    console.print(_table(summarise(run.answers)))
    console.print(LEGEND + (OF_TINY if run.model == TINY else ""), style="dim")
    stopped = "" if run.num_prompts == run.num_asked else f" of {run.num_asked} (the time limit came first)"
    size = f"{run.num_prompts} prompts{stopped}, at most {run.comparison.max_new_tokens} tokens each"
    place = run.device if run.device != "cpu" else f"cpu, {count(run.num_threads, 'thread')}"
    console.print(f"\n{size}, {run.dtype} on {place}. Took {run.wall_s:.0f} s in all, loading included.")


def _samples(model: str, answers: Sequence[Answer]) -> list[Answer]:
    """Plain decoding's first greedy answer of each kind that is shown of a model; all of them where none is named."""
    greedy = [one for one in answers if one.method == PLAIN and one.temperature == min(a.temperature for a in answers)]
    if model not in SAMPLES:
        return greedy
    first = {answer.prompt.kind: answer for answer in reversed(greedy)}
    return [first[kind] for kind in SAMPLES[model] if kind in first] or greedy[:1]


def _shortened(answer: Answer) -> str:
    """The turn that was answered, the beginning of a long one."""
    turn = answer.prompt.turns[answer.turn].strip()
    return turn if len(turn) <= LONGEST_SHOWN else turn[:LONGEST_SHOWN].rsplit(" ", 1)[0] + " ..."


def _table(rows: Sequence[Totals]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("method", no_wrap=True)
    for heading in ("T", "tau", "accept\nrate", "target\npasses\nsaved", "tokens/s", "x plain"):
        table.add_column(heading, justify="right", no_wrap=True, vertical="bottom")
    table.add_column("identical\nto plain", no_wrap=True)
    plain = {row.temperature: row for row in rows if row.method == PLAIN}
    for index, row in enumerate(rows):
        last_of_temperature = index + 1 == len(rows) or rows[index + 1].temperature != row.temperature
        table.add_row(*_cells(row, plain[row.temperature]), end_section=last_of_temperature)
    return table


def _cells(row: Totals, plain: Totals) -> list[str]:
    stats = row.stats
    return [
        row.method,
        f"{row.temperature:g}",
        f"{stats.tau:.2f}",
        f"{stats.acceptance_rate:.0%}" if stats.num_drafted else "-",
        f"{stats.passes_saved:.0%}",
        f"{stats.tokens_per_second:.0f}",
        f"{stats.tokens_per_second / plain.stats.tokens_per_second:.2f}",
        "reference" if row.method == PLAIN else _verdicts(row),
    ]


def _verdicts(row: Totals) -> str:
    verdicts = row.verdicts
    text = f"{verdicts['identical']} of {sum(verdicts.values())}"
    if verdicts["rounding"]:
        text += f"\n{verdicts['rounding']} rounding"
    if verdicts["fault"]:
        text += f"\n[bold red]{verdicts['fault']} FAULT[/bold red]"
    return text
