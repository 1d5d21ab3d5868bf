"""The thread that steps the engine: answers wait, run in turns cycle by cycle, and are told piece by piece.

Nothing here knows of the network. Other threads submit jobs and cancel them; none of them waits for a pass.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from slipstream.core.logprobs import TokenLogprobs
from slipstream.engine.engine import Engine
from slipstream.engine.sequence import DraftTrace, FinishReason, Step
from slipstream.errors import SlipstreamError
from slipstream.server.api_errors import ApiError, failed, refused, stopping, too_slow
from slipstream.server.asking import Asked
from slipstream.server.metrics import Metrics

logger = logging.getLogger(__name__)

_LONGEST_WAIT_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one cycle has added to an answer, or how it ended."""

    text: str = ""
    parts: tuple[tuple[str, bool], ...] = ()
    """Of a traced answer: the text by tokens, and whether each was drafted."""
    draft: DraftTrace | None = None
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    num_drafted: int = 0
    num_accepted: int = 0
    finish_reason: FinishReason | None = None
    error: ApiError | None = None

    @property
    def is_last(self) -> bool:
        """Whether the answer is over."""
        return self.finish_reason is not None or self.error is not None


@dataclass(eq=False, slots=True)
class Job:
    """One answer, from the moment that it is asked for."""

    asked: Asked
    tell: Callable[[Piece], None]
    """Called from the worker's thread, and must not block."""
    begun: float = field(default_factory=time.monotonic)
    last_piece: float | None = None
    is_cancelled: bool = False


class Worker:
    """Runs answers on a thread of its own."""

    def __init__(
        self,
        engines: Mapping[str, Engine],
        metrics: Metrics,
        *,
        most_running: int,
        most_waiting: int,
        time_limit_s: float,
    ) -> None:
        """engines: by method; the first is for answers that name none."""
        self._engines, self._metrics = engines, metrics
        self._most_running, self._most_waiting, self._time_limit_s = most_running, most_waiting, time_limit_s
        self._changed = threading.Condition()  # guards all that follows
        self._waiting: deque[Job] = deque()
        self._running: dict[tuple[str, int], Job] = {}  # by engine and number
        self._ends_at: float | None = None  # set once the server is stopping
        self._is_closed = False
        self._mean_s = 1.0  # of the last answers
        self._thread = threading.Thread(target=self._run, name="slipstream-worker", daemon=True)
        metrics.watch(lambda: len(self._running), lambda: len(self._waiting))

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def is_stopping(self) -> bool:
        """Whether no more answers are taken."""
        return self._ends_at is not None

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take in all of these, or none. Raises ApiError: 429 where too many wait, 503 while stopping."""
        with self._changed:
            if self.is_stopping:
                raise stopping()
            free = self._most_running - len(self._running) + self._most_waiting - len(self._waiting)
            if len(jobs) > free:
                raise self._full()
            for job in jobs:
                self._check_method(job.asked.method)
            self._waiting.extend(jobs)
            self._changed.notify()

    def _check_method(self, method: str | None) -> None:
        if method is not None and method not in self._engines:
            known = ", ".join(self._engines)
            raise ApiError(400, f"the method {method!r} is not served; choose from {known}", param="slipstream")

    def cancel(self, job: Job) -> None:
        """Give up an answer; nobody is told any more. It is forgotten after the pass under way."""
        job.is_cancelled = True

    def stop(self, drain_s: float) -> None:
        """Take no more answers, and end those that are not over after so many seconds."""
        with self._changed:
            if self._ends_at is None:
                self._ends_at = time.monotonic() + drain_s
            self._changed.notify()

    def close(self) -> None:
        """End all answers and the thread, and wait for it."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _full(self) -> ApiError:
        rounds = (len(self._waiting) + len(self._running)) / self._most_running
        wait_s = min(_LONGEST_WAIT_S, max(1, math.ceil(rounds * self._mean_s)))
        message = f"{len(self._waiting)} answers wait already; try again in {wait_s} s"
        return ApiError(429, message, code="queue_full", retry_after_s=wait_s)

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._turn()
            except Exception:
                logger.exception("a step of the engine failed; all answers under way are given up")
                for key, job in list(self._running.items()):
                    self._end(key, job, failed())

    def _wait_for_work(self) -> bool:
        """Whether to go on. Begins the answers whose turn it is."""
        with self._changed:
            while not (self._is_closed or self._waiting or self._running):
                self._changed.wait()
            while self._waiting and len(self._running) < self._most_running and not self._is_closed:
                self._begin(self._waiting.popleft())
        if self._is_closed:
            self._end_all(stopping())
        return not self._is_closed

    def _begin(self, job: Job) -> None:
        if job.is_cancelled:
            return
        method = job.asked.method or next(iter(self._engines))
        try:
            number = self._engines[method].add(job.asked.request)
        except SlipstreamError as error:
            job.tell(Piece(error=refused(error)))
            return
        self._running[method, number] = job
        self._metrics.count_prompt(len(job.asked.request.prompt_ids))

    def _turn(self) -> None:
        """One pass of every answer under way."""
        for method, engine in self._engines.items():
            for number, step in engine.step().items():
                job = self._running.get((method, number))
                if job is not None:
                    self._tell((method, number), job, step)
        self._give_up()

    def _tell(self, key: tuple[str, int], job: Job, step: Step) -> None:
        now = time.monotonic()
        if step.error is not None:
            logger.error("an answer failed", exc_info=step.error)
            ours = isinstance(step.error, SlipstreamError)
            self._end(key, job, refused(step.error) if ours else failed())  # type: ignore[arg-type]
            return
        self._metrics.count(step, now, began=job.begun, previous=job.last_piece)
        job.last_piece = now
        if not job.is_cancelled:
            job.tell(_piece(step, job.asked))
        if step.finish_reason is not None:
            del self._running[key]
            self._mean_s += 0.2 * (now - job.begun - self._mean_s)
            self._metrics.end(step.finish_reason, now - job.begun)

    def _give_up(self) -> None:
        """Leave answers whose client has left, and those that take too long or outlast the server."""
        now = time.monotonic()
        for key, job in list(self._running.items()):
            if job.is_cancelled:
                self._end(key, job, None)
            elif now > job.begun + self._time_limit_s:
                self._end(key, job, too_slow(self._time_limit_s))
        with self._changed:
            late = [job for job in self._waiting if job.is_cancelled or now > job.begun + self._time_limit_s]
            for job in late:
                self._waiting.remove(job)
        for job in late:
            job.tell(Piece(error=too_slow(self._time_limit_s)))
        if self._ends_at is not None and now > self._ends_at:
            self._end_all(stopping())

    def _end(self, key: tuple[str, int], job: Job, error: ApiError | None) -> None:
        """Before its time. error: None where nobody listens any more."""
        method, number = key
        self._engines[method].remove(number)
        self._running.pop(key, None)
        if error is not None:
            job.tell(Piece(error=error))
        self._metrics.end("cancelled" if error is None else str(error.code), time.monotonic() - job.begun)

    def _end_all(self, error: ApiError) -> None:
        for key, job in list(self._running.items()):
            self._end(key, job, error)
        with self._changed:
            left, self._waiting = list(self._waiting), deque()
        for job in left:
            job.tell(Piece(error=error))


def _piece(step: Step, asked: Asked) -> Piece:
    """The text of a step; with stop strings the engine has shown its tokens to the text already."""
    parts, is_over = [], step.finish_reason is not None
    if asked.request.stopper is None:
        for place, token in enumerate(step.token_ids):
            asked.text.append_token(token)
            if asked.request.trace:
                is_last = place == len(step.token_ids) - 1
                parts.append((asked.text.release(final=is_over and is_last), place < step.num_accepted))
    return Piece(
        text="".join(text for text, _ in parts) if parts else asked.text.release(final=is_over),
        parts=tuple(parts),
        draft=step.draft,
        token_ids=step.token_ids,
        logprobs=step.logprobs,
        num_drafted=step.num_drafted,
        num_accepted=step.num_accepted,
        finish_reason=step.finish_reason,
    )
