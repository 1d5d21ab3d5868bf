"""A Ray cluster: reaching it, and how many workers fit on it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from slipstream.errors import InputError

_REACHED_S = 15
"""Within which the machine of an address must answer."""
_TRIES = "RAY_gcs_server_port_wait_time_s"
"""Read by Ray: how often, about once a second where nothing listens, it looks for a cluster."""


@dataclass(frozen=True, slots=True)
class Workers:
    """How many there are and what each is given."""

    number: int
    num_gpus: int
    num_cpus: int | None
    """None: Ray's choice, beside a GPU."""

    @classmethod
    def on_cluster(cls, number: int | None, *, on_gpus: bool = True) -> Workers:
        """One a GPU; without GPUs, or with `on_gpus` False, one a machine, or `number` that share the processors.

        Raises InputError for more workers than there are GPUs or processors.
        """
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = int(sum(node.get("GPU", 0) for node in nodes)) if on_gpus else 0
        if gpus:
            return cls(_at_most(number or gpus, gpus, "GPUs"), 1, None)
        cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
        number = _at_most(number or len(cpus), sum(cpus), "processors")
        each = max(one for one in range(1, max(cpus) + 1) if sum(cpu // one for cpu in cpus) >= number)
        return cls(number, 0, each)

    @property
    def resources(self) -> dict[str, Any]:
        """For Ray."""
        return {"num_gpus": self.num_gpus, "num_cpus": self.num_cpus}


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """To a cluster, for as long as it is needed; a connection that is there already is used and left."""
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        _check_reachable(address)
    if ray.is_initialized():
        yield
        return
    try:
        with _one_try(address):
            ray.init(address=address, include_dashboard=False, logging_level="warning")
    except Exception as error:  # which Ray raises as such, for a machine that is too busy
        raise _no_cluster(address, str(error).partition("\n")[0]) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise InputError where nothing listens: Ray itself would try for minutes."""
    if address.startswith("ray://"):
        raise InputError(f"{address} is for programs elsewhere; run this on a machine of the cluster, with HOST:PORT")
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_REACHED_S).close()
        except (OSError, OverflowError) as error:
            raise _no_cluster(address, str(error)) from error


@contextmanager
def _one_try(address: str | None) -> Iterator[None]:
    """Let Ray try once, for 45 s, at an address where something else may listen; else it tries 20 times."""
    if address in (None, "auto", "local") or _TRIES in os.environ:
        yield
        return
    os.environ[_TRIES] = "1"
    try:
        yield
    finally:
        del os.environ[_TRIES]


def _no_cluster(address: str | None, reason: str) -> InputError:
    return InputError(
        f"no Ray cluster at {address or 'this machine'} ({reason}); give the address that `ray start --head` named, or "
        "none for this machine alone"
    )


def _at_most(number: int, limit: int, kind: str) -> int:
    if number > limit:
        raise InputError(f"--workers is {number}, but the cluster has {limit} {kind}; ask for fewer")
    return number
