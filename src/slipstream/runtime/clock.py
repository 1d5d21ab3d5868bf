"""Where the time of a cycle goes, measured without making the host wait for the device.

On a CPU the parts are read off the host's clock. On CUDA the host only queues work, so a marker is queued after each
part, and the markers are read once the cycle's one copy to the host has waited for all of them. A part then ends when
the device has done it; time in which the device waits for the next kernel to be queued counts to the part it waits for.
"""

from __future__ import annotations

import time
from typing import Any, Literal, get_args

import torch

Part = Literal["draft", "build", "verify", "sample", "host"]
"""draft: the drafter. build: rows, positions and masks of the tree's pass. verify: the target's pass. sample: logits
processing, choosing and walking, up to the copy to the host. host: the rest; cuts, commit, what the drafter learns."""
PARTS: tuple[Part, ...] = get_args(Part)


class CycleClock:
    """Times one cycle after another: `begin`, `lap(part)` at the end of each part, at last `seconds_by_part`."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._device = device
        self._began = 0.0
        self._parts: list[Part] = []
        self._times: list[float] = []  # CPU: the beginning, and the end of each part
        self._markers: list[Any] = []  # CUDA: the same as events, kept for the next cycle

    def begin(self) -> None:
        """A cycle starts."""
        self._began = time.perf_counter()
        self._parts.clear()
        self._times = [self._began]
        if self._cuda:
            self._mark(0)

    def lap(self, part: Part) -> None:
        """What was done, or queued, since the last call belongs to `part`."""
        self._parts.append(part)
        if self._cuda:
            self._mark(len(self._parts))
        else:
            self._times.append(time.perf_counter())

    def seconds_by_part(self) -> dict[Part, float]:
        """Seconds by part; what no lap claims is the host's. Call it after the host has waited for the last lap."""
        seconds = dict.fromkeys(PARTS, 0.0)
        for index, part in enumerate(self._parts):
            seconds[part] += self._seconds_of(index)
        seconds["host"] += max(0.0, time.perf_counter() - self._began - sum(seconds.values()))
        return seconds

    def _seconds_of(self, index: int) -> float:
        if self._cuda:
            return float(self._markers[index].elapsed_time(self._markers[index + 1])) / 1000.0
        return self._times[index + 1] - self._times[index]

    def _mark(self, index: int) -> None:
        if index == len(self._markers):
            event: Any = torch.cuda.Event
            self._markers.append(event(enable_timing=True))
        self._markers[index].record(torch.cuda.current_stream(self._device))
