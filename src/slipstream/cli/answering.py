"""Streaming one answer to stdout, and the line of statistics that follows it on stderr."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slipstream import Model, Output


def stream_answer(model: Model, prompt: Any, settings: dict[str, Any]) -> Output:
    """Print the answer as it comes, one write per draft-verify cycle, and return it whole.

    On Ctrl-C the generation is closed, which leaves the model usable, and KeyboardInterrupt goes on to the caller.
    """
    with closing(model.stream(prompt, **settings)) as steps:
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                print(flush=True)
                output: Output = end.value
                return output
            print(step.text, end="", flush=True)


def statistics_line(output: Output, method: str, temperature: float | None = None) -> str:
    """One line: how much, how fast, how often the draft was right."""
    stats = output.stats
    parts = [
        f"{stats.num_tokens} tokens in {stats.total_s:.2f} s ({stats.tokens_per_second:.1f} tokens/s)",
        f"{method}: tau {stats.tau:.2f}, accept rate {stats.acceptance_rate:.0%}",
        f"target passes saved {stats.passes_saved:.0%}",
        f"ended by {output.finish_reason}",
    ]
    if output.seed is not None:
        parts.append(f"seed {output.seed}")
    return " | ".join(parts)


def note(line: str) -> None:
    """Say something that is not the result: on stderr, dimmed where that can be shown."""
    from rich.console import Console

    Console(stderr=True, highlight=False).print(line, style="dim", markup=False, soft_wrap=True)


def stdin_is_terminal() -> bool:
    """Whether a person sits at stdin."""
    return sys.stdin is not None and sys.stdin.isatty()
