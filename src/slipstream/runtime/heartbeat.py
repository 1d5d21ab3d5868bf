"""Processes that work together end soon after one of them is gone.

A process that waits for another in torch.distributed may wait for ten minutes and more before it gives up, and a long
wait is no sign of anything: others may be measuring, saving or writing answers. So each process beats, every few
seconds and whatever it does, in the store that the process group has. One whose beat stops has ended, and the others
end with a line that says so.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch.distributed as dist

from slipstream.errors import SlipstreamError

BEAT_S = 2.0
"""Between two beats."""
LIMIT_S = 30.0
"""A process that was not heard of for so long is gone."""
_LEFT = b"left"
_numbers = itertools.count()  # all processes make their heartbeats in the same order


class Heartbeat:
    """Of this process, in a thread, for all processes of the default group; it watches theirs."""

    def __init__(self) -> None:
        from torch.distributed.distributed_c10d import _get_default_store

        store: Any = _get_default_store()
        self._store = store.clone()  # operations on one store wait for each other
        self._prefix, self._own = f"slipstream/heartbeat/{next(_numbers)}", dist.get_rank()
        now = time.monotonic()
        self._heard = {rank: (b"", now) for rank in range(dist.get_world_size()) if rank != self._own}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="slipstream-heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No more beats: the others will miss this process."""
        self._ended.set()
        self._thread.join()

    def leave(self) -> None:
        """This process has done its part: the others need not miss it."""
        self.stop()
        with suppress(RuntimeError):  # the process that kept the store may have left before
            self._store.set(self._key(self._own), _LEFT)

    def _run(self) -> None:
        for beat in itertools.count():
            with suppress(RuntimeError):  # where the process that kept the store is gone, nobody is heard of any more
                self._store.set(self._key(self._own), str(beat))
                self._listen()
            if silent := self._silent():
                end(f"process {silent[0]} of this run has ended or hangs; start all processes again")
            if self._ended.wait(BEAT_S):
                return

    def _listen(self) -> None:
        for rank, (last, _) in self._heard.items():
            key = self._key(rank)
            beat = self._store.get(key) if self._store.check([key]) else b""
            if beat != last:
                self._heard[rank] = beat, time.monotonic()

    def _silent(self) -> list[int]:
        now = time.monotonic()
        return [rank for rank, (beat, at) in self._heard.items() if beat != _LEFT and now - at > LIMIT_S]

    def _key(self, rank: int) -> str:
        return f"{self._prefix}/{rank}"


def end(reason: str) -> None:
    """End this process at once with a line: its main thread may wait inside the backend, where nothing reaches it."""
    os.write(2, f"error: {reason}\n".encode())
    os._exit(1)


@contextmanager
def together() -> Iterator[None]:
    """What processes do together, where there are several: it ends in all of them if it ends in one.

    Raises SlipstreamError where another process is gone.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        yield
        return
    heartbeat = Heartbeat()
    try:
        with one_line():
            yield
    except BaseException:
        heartbeat.stop()
        raise
    heartbeat.leave()


@functools.cache
def for_life() -> None:
    """Beat as long as this process lives, and end with the others; leave them where its program comes to its end."""
    heartbeat = Heartbeat()
    atexit.register(lambda: None if hasattr(sys, "last_value") else heartbeat.leave())  # set by an error that ended it


@contextmanager
def one_line() -> Iterator[None]:
    """Errors of a backend that lost another process, as a SlipstreamError of one line."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost(error):
            raise
        raise SlipstreamError("another process of this run has ended; start all processes again") from error


def is_lost(error: RuntimeError) -> bool:
    """Whether the backend says that another process is gone or does not answer."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)
