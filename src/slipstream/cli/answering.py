"""Streaming one answer, and the line of statistics that follows it on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slipstream import Model, Output, Stats
    from slipstream.engine.sequence import Step

_ABOUT_THE_SAME = 0.95, 1.05


def stream_answer(model: Model, prompt: Any, settings: dict[str, Any], show: Callable[[Step], None]) -> Output:
    """Show the answer as it comes, cycle by cycle, and return it whole.

    On Ctrl-C the generation is closed, which leaves the model usable, and KeyboardInterrupt goes on to the caller.
    """
    with closing(model.stream(prompt, **settings)) as steps:
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                output: Output = end.value
                return output
            show(step)


def statistics_line(output: Output, method: str) -> str:
    """One line: how much, how fast, how often the draft was right, and what that brought. method: see `chosen`."""
    stats = output.stats
    parts = [
        f"{stats.num_tokens} tokens in {stats.total_s:.2f} s ({stats.tokens_per_second:.1f} tokens/s)",
        *_drafting(stats, method),
        f"ended by {output.finish_reason}",
    ]
    if output.seed is not None:
        parts.append(f"seed {output.seed}")
    return " | ".join(parts)


def _drafting(stats: Stats, method: str) -> list[str]:
    if method == "plain":
        return [method]
    if stats.num_drafted:
        drafts = f"tau {stats.tau:.2f}, accept rate {stats.acceptance_rate:.0%}"
        parts = [f"{method}: {drafts}", f"target passes saved {stats.passes_saved:.0%}"]
    else:
        parts = [f"{method}: nothing drafted"]
    return parts if stats.speedup is None else [*parts, f"about {speed(stats.speedup)}"]


def speed(ratio: float) -> str:
    """A speed over plain decoding's in words; a loss is called one."""
    low, high = _ABOUT_THE_SAME
    if low <= ratio <= high:
        return "plain's speed"
    return f"{ratio:.1f} times plain's speed" if ratio > high else f"{ratio:.2f} times plain's speed, a loss"


def chosen(method: str, asked: str) -> str:
    """A method's name for the user, who may have left the choice to `auto`."""
    return f"{method} (chosen by auto)" if asked == "auto" != method else method


def note(line: str) -> None:
    """Say something that is not the result: on stderr, dimmed and in whole words where that can be shown."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    console.print(line, style="dim", markup=False, soft_wrap=not console.is_terminal)


def stdin_is_terminal() -> bool:
    """Whether a person sits at stdin."""
    return sys.stdin is not None and sys.stdin.isatty()
