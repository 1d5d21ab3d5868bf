"""A server that runs until it is told to stop, and then lets answers under way end."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI

from slipstream.model import Model
from slipstream.server.app import make_app
from slipstream.server.settings import ServerSettings
from slipstream.server.worker import Worker

_AFTER_DRAIN_S = 5


def serve(model: Model, name: str, settings: ServerSettings, on_ready: Callable[[str], None]) -> None:
    """Serve a model until SIGINT or SIGTERM. name: the one by which requests ask for it.

    on_ready: told the server's address once it listens.
    """
    app = make_app(model, name, settings)
    Server(app, settings, on_ready).run()


class Server(uvicorn.Server):
    """uvicorn's, which tells the worker to come to an end before it waits for its connections."""

    def __init__(self, app: FastAPI, settings: ServerSettings, on_ready: Callable[[str], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                log_level="warning",
                access_log=False,
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=int(settings.drain) + _AFTER_DRAIN_S,
            )
        )
        self._worker: Worker = app.state.worker
        self._drain_s, self._on_ready = settings.drain, on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready(_address(self.servers[0].sockets[0].getsockname()))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._worker.stop(self._drain_s)
        await super().shutdown(sockets)


def _address(name: Any) -> str:
    host, port = name[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
