"""Whether a hub can be asked at all, found in a moment: its own client tries for half a minute."""

from __future__ import annotations

import socket
from contextlib import suppress
from threading import Thread
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

PATIENCE_S = 3.0
"""A hub that takes no connection for so long counts as unreachable."""


def is_hub_id(name: str) -> bool:
    """Whether the hub could have a repository of this name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def is_offline() -> bool:
    """Whether the hub's client is told to stay offline, or nothing takes a connection where it would connect."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return True
    reached: list[bool] = []

    def connect(host: str, port: int) -> None:
        with suppress(OSError):
            socket.create_connection((host, port), timeout=PATIENCE_S).close()
            reached.append(True)

    # looking up a name knows no time limit, so that it may outlive our patience
    attempt = Thread(target=connect, args=_first_hop(constants.ENDPOINT), daemon=True)
    attempt.start()
    attempt.join(PATIENCE_S)
    return not reached


def _first_hop(endpoint: str) -> tuple[str, int]:
    """Host and port of the hub, or of the proxy that stands before it."""
    hub = urlsplit(endpoint)
    proxies = getproxies()
    proxy = proxies.get(hub.scheme) or proxies.get("all")
    first = hub if proxy is None or proxy_bypass(hub.hostname or "") else urlsplit(_with_scheme(proxy))
    return first.hostname or "", first.port or (443 if first.scheme == "https" else 80)


def _with_scheme(proxy: str) -> str:
    return proxy if "://" in proxy else f"http://{proxy}"
