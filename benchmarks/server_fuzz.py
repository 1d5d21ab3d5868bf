"""Requests made up from the server's own schema: how it answered them, and whether it was well afterwards.

    python benchmarks/server_fuzz.py --cases 60 --out benchmarks/records/server-fuzz.json

Made-up requests ask for the model that is served and for two tokens, so that many of them are run.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings

from slipstream.records.machine import commit, cpu_name, shown_command, versions

MODEL = "tiny"
PATHS = {"/v1/chat/completions": "POST", "/v1/completions": "POST", "/v1/models/{name}": "GET"}
PATIENCE_S = 60


def main() -> int:
    """Fuzz a server, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=60, help="requests to each route")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    command = [sys.executable, "-m", "slipstream", "serve", "-m", MODEL, "-d", "prompt-lookup", "--total", "6"]
    process = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("listening on ").strip().removesuffix("/v1")
        statuses = {path: answered(url, path, options.cases) for path in PATHS}
        is_alive = process.poll() is None
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    found = {
        "command": shown_command(["python", *sys.argv]),
        "commit": commit(),
        "cpu": cpu_name(),
        "versions": versions("fastapi", "uvicorn", "schemathesis", "hypothesis"),
        "model": MODEL,
        "statuses": statuses,
        "server_is_alive": is_alive,
    }
    print(json.dumps(found, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    failed = any(int(status) >= 500 for counts in statuses.values() for status in counts)
    return 1 if failed or not is_alive else 0


def answered(url: str, path: str, cases: int) -> dict[str, int]:
    """Requests by the status of their answers."""
    statuses: Counter[str] = Counter()
    operation = schemathesis.openapi.from_url(f"{url}/openapi.json")[path][PATHS[path]]

    @given(case=operation.as_strategy())
    @settings(
        max_examples=cases, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    def ask(case: Any) -> None:
        if isinstance(case.body, dict):
            case.body |= {"model": MODEL, "max_tokens": 2}
            case.body.pop("max_completion_tokens", None)
        statuses[str(case.call(base_url=url, timeout=PATIENCE_S).status_code)] += 1

    ask()
    return dict(sorted(statuses.items()))


if __name__ == "__main__":
    raise SystemExit(main())
