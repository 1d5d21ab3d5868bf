"""Figures for Prometheus: what the answers of one server cost and how well drafts were kept."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from slipstream.engine.sequence import Step

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_PER_TOKEN_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_LENGTHS = (1, 2, 3, 4, 5, 6, 8, 12, 16)
_WINDOW_S = 10.0
"""Tokens per second are those of so many last seconds."""


class Metrics:
    """The figures of one server. Counting is the worker's thread's, reading anybody's."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._recent: deque[tuple[float, int]] = deque()
        self._prompt = Counter("slipstream_prompt_tokens", "Tokens of prompts", registry=registry)
        self._tokens = Counter("slipstream_generated_tokens", "Tokens of answers", registry=registry)
        self._cycles = Counter("slipstream_cycles", "Draft-verify passes of the target", registry=registry)
        self._drafted = Counter("slipstream_drafted_tokens", "Drafted tokens that were verified", registry=registry)
        self._accepted = Counter("slipstream_accepted_tokens", "Drafted tokens that were kept", registry=registry)
        self._answers = Counter("slipstream_answers", "Answers that are over, by reason", ["reason"], registry=registry)
        self._running = Gauge("slipstream_answers_running", "Answers under way", registry=registry)
        self._waiting = Gauge("slipstream_answers_waiting", "Answers that wait for their turn", registry=registry)
        self._first_s = Histogram(
            "slipstream_first_token_seconds",
            "From the request to the first tokens, waiting included",
            buckets=_SECONDS,
            registry=registry,
        )
        self._token_s = Histogram(
            "slipstream_token_seconds", "Seconds of a cycle per token", buckets=_PER_TOKEN_S, registry=registry
        )
        self._answer_s = Histogram(
            "slipstream_answer_seconds", "Seconds of an answer, waiting included", buckets=_SECONDS, registry=registry
        )
        self._length = Histogram("slipstream_accept_length", "Tokens of a cycle", buckets=_LENGTHS, registry=registry)
        self._totals = {"tokens": 0, "cycles": 0, "drafted": 0, "accepted": 0}
        for name, help_text, value in (
            ("slipstream_tau", "Tokens per cycle, since the start", lambda: self._ratio("tokens", "cycles")),
            ("slipstream_acceptance_rate", "Kept of drafted tokens", lambda: self._ratio("accepted", "drafted")),
            ("slipstream_tokens_per_second", "Of the last 10 seconds", self._tokens_per_second),
        ):
            Gauge(name, help_text, registry=registry).set_function(value)

    def watch(self, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Where the lengths of the queues are read."""
        self._running.set_function(running)
        self._waiting.set_function(waiting)

    def count_prompt(self, num_tokens: int) -> None:
        """Add a prompt that was taken in."""
        self._prompt.inc(num_tokens)

    def count(self, step: Step, now: float, *, began: float, previous: float | None) -> None:
        """Add one cycle. now, began, previous: when it, its answer and the cycle before it came, in seconds."""
        emitted = len(step.token_ids)
        numbers = {"tokens": emitted, "cycles": 1, "drafted": step.num_drafted, "accepted": step.num_accepted}
        counters = (self._tokens, self._cycles, self._drafted, self._accepted)
        for counter, (name, number) in zip(counters, numbers.items(), strict=True):
            counter.inc(number)
            self._totals[name] += number
        self._length.observe(emitted)
        if previous is None:
            self._first_s.observe(now - began)
        elif emitted:
            self._token_s.observe((now - previous) / emitted)
        self._recent.append((now, emitted))
        while self._recent and self._recent[0][0] < now - _WINDOW_S:
            self._recent.popleft()

    def end(self, reason: str, seconds: float) -> None:
        """Add an answer that is over."""
        self._answers.labels(reason).inc()
        self._answer_s.observe(seconds)

    def text(self) -> bytes:
        """For Prometheus."""
        text: bytes = generate_latest(self._registry)
        return text

    def _ratio(self, above: str, below: str) -> float:
        return self._totals[above] / self._totals[below] if self._totals[below] else 0.0

    def _tokens_per_second(self) -> float:
        since = time.monotonic() - _WINDOW_S
        return sum(count for at, count in list(self._recent) if at >= since) / _WINDOW_S
