"""The answers to one request as the event loop sees them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from functools import partial

from starlette.requests import Request

from slipstream.server.asking import Asked
from slipstream.server.worker import Job, Piece, Worker

_LOOK_EVERY_S = 0.5


class ClientLeftError(Exception):
    """Nobody waits for the answers any more."""


class Answers:
    """Answers that the worker makes, piece by piece; made and read on the event loop."""

    def __init__(self, worker: Worker, asked: Sequence[Asked]) -> None:
        """Raises ApiError where the worker takes no more."""
        self._worker, self.asked = worker, asked
        self._loop = asyncio.get_running_loop()
        self._told: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self._jobs = [Job(one, partial(self._tell, index)) for index, one in enumerate(asked)]
        worker.submit(self._jobs)

    def _tell(self, index: int, piece: Piece) -> None:
        """From the worker's thread."""
        with suppress(RuntimeError):  # the loop is closed: the server has stopped without waiting
            self._loop.call_soon_threadsafe(self._told.put_nowait, (index, piece))

    async def pieces(self, request: Request) -> AsyncIterator[tuple[int, Piece]]:
        """(answer, piece) as they come, to the last of all. Raises ClientLeftError, and the ApiError of a piece."""
        left, looked = len(self._jobs), self._loop.time()
        while left:
            with suppress(TimeoutError):
                index, piece = await asyncio.wait_for(self._told.get(), _LOOK_EVERY_S)
                if piece.error is not None:
                    raise piece.error
                left -= piece.is_last
                yield index, piece
            if self._loop.time() > looked + _LOOK_EVERY_S:
                looked = self._loop.time()
                if await request.is_disconnected():
                    raise ClientLeftError

    def cancel(self) -> None:
        """Give up what is not over."""
        for job in self._jobs:
            self._worker.cancel(job)
