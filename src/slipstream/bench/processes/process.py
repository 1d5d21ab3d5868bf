"""A peer's process, seen from the benchmark: it is started, asked, and ended. What is said: `child.py`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from slipstream.errors import InputError, SlipstreamError, first_line
from slipstream.runtime.threads import WAITING

_PATIENCE_S = 5.0
"""For a process that has nothing more to do to end by itself."""


def environment_of_others() -> dict[str, str]:
    """This process's environment, less what PyTorch's threads are told: other software keeps its own way of waiting."""
    return {name: value for name, value in os.environ.items() if WAITING.get(name) != value}


class PeerProcess:
    """One process with one loaded peer. Between two requests it waits and takes no processor time."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        settings: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it and let it load. name: for messages. settings: the first line that it is told.

        environment: None: this process's. Raises InputError where it cannot be started, or says why it cannot load.
        """
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the process is
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                encoding="utf-8",
                env=None if environment is None else dict(environment),
                start_new_session=True,  # Ctrl-C is for the benchmark, which ends it
            )
        except OSError as error:
            self._errors.close()
            raise InputError(f"{name}: cannot run {command[0]}: {error.strerror}") from error
        try:
            self.software = str(self._say(settings, InputError)["software"])
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to a request. Raises SlipstreamError where there is none."""
        return self._say(request, SlipstreamError)

    def close(self) -> None:
        """End it, whatever it is doing."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what it has not read
                    pipe.close()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _say(self, content: Mapping[str, Any], kind: type[SlipstreamError]) -> dict[str, Any]:
        """Tell it a line and read one. Raises an error of this kind for anything but a reply."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(content) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise kind(self._how_it_ended()) from None
        line = self._process.stdout.readline()
        if not line:
            raise kind(self._how_it_ended())
        try:
            reply: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise kind(f"{self.name}: its process said what is no JSON: {first_line(error)}") from error
        if "error" in reply:
            raise kind(f"{self.name}: {reply['error']}")
        return reply

    def _how_it_ended(self) -> str:
        """In one line, with the last that it wrote to stderr."""
        try:
            code = self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            return f"{self.name}: its process no longer answers"
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self._errors.seek(0)
        lines = [line for line in self._errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return f"{self.name}: its process {how}" + (f": {lines[-1].strip()}" if lines else "")
