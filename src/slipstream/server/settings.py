"""How a server listens and what it lets through."""

from __future__ import annotations

from dataclasses import dataclass

from slipstream.errors import InputError

_AT_LEAST: dict[str, float] = {
    "most_running": 1,
    "most_waiting": 0,
    "max_tokens": 1,
    "keep": 0,
    "time_limit": 0.001,
    "max_body_kib": 1,
    "drain": 0,
}


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of a server."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    api_key: str | None = None
    """Key that requests must bring (Authorization: Bearer KEY); None: the one in SLIPSTREAM_API_KEY, if any."""
    cors_origin: tuple[str, ...] = ()
    """Origin whose pages may call the server from a browser, such as http://localhost:3000; repeatable."""
    most_running: int = 8
    """Answers under way at once, each with a KV cache of its own."""
    most_waiting: int = 64
    """Answers that wait for their turn; beyond them requests are refused with status 429."""
    max_tokens: int = 1024
    """Tokens of an answer at most, where the request does not say."""
    keep: int = 4
    """Texts whose keys and values are kept: of a conversation's next turn the new tokens alone are run; 0: none."""
    time_limit: float = 600.0
    """Seconds that an answer may take, waiting included."""
    max_body_kib: int = 1024
    """Size of a request at most, in KiB."""
    drain: float = 30.0
    """Seconds that answers under way are given when the server is stopped."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InputError(f"port is {self.port}; it must be from 0 to 65535")
        if self.api_key == "":
            raise InputError("api_key is empty; give a key, or leave it out")
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if not least <= value < float("inf"):
                raise InputError(f"{name} is {value}; it must be at least {least:g}")
