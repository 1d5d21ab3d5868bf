"""A process ends when another one that it works with is gone, also where it waits for nothing from it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch.distributed as dist

from slipstream.errors import SlipstreamError
from slipstream.runtime.heartbeat import one_line, together

SCRIPT = """
import os, signal, time
import torch.distributed as dist
from slipstream.runtime import heartbeat
heartbeat.BEAT_S, heartbeat.LIMIT_S = 0.2, 4.0
dist.init_process_group("gloo")
with heartbeat.together():  # both leave in order
    pass
with heartbeat.together():
    if dist.get_rank() == 1:
        print("stopping", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)
"""


def test_a_process_that_hangs_ends_the_other_with_one_line():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **group, "RANK": str(rank)},
        )
        for rank in range(2)
    ]
    first, second = processes
    try:
        assert second.stdout is not None
        assert second.stdout.readline() == "stopping\n"
        began = time.monotonic()
        _, said = first.communicate(timeout=50)
        assert time.monotonic() - began < 50
    finally:
        second.send_signal(signal.SIGKILL)
        second.communicate()
        first.kill()
        first.communicate()
    assert first.returncode == 1
    assert said == "error: process 1 of this run has ended or hangs; start all processes again\n"


def test_one_process_is_watched_by_nobody():
    assert not dist.is_initialized()
    with together():
        pass


def test_what_a_backend_says_of_a_lost_process_is_one_line():
    ended = "another process of this run has ended; start all processes again"
    with pytest.raises(SlipstreamError, match=ended), one_line():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1")
    with pytest.raises(RuntimeError, match="shapes differ"), one_line():
        raise RuntimeError("shapes differ")
