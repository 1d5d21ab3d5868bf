"""How long layers take to compile when a process starts: with inductor's cache on disk empty, and with it full.

    python benchmarks/compiled_start.py -m smollm2 --dtype bf16 --threads 2 \
        --out benchmarks/records/compiled-start-bf16.json

Each start is a process of its own, which runs passes of all sizes until they are compiled. The cache is a new folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import slipstream
from records import provenance, write_record
from slipstream.runtime.executor import make_executor
from slipstream.runtime.timing import Passes
from slipstream.target.target import Target

ROWS = (1, 4, 8, 16, 32)
CACHE = "TORCHINDUCTOR_CACHE_DIR"


def main() -> int:
    """Start twice, print, write the record; or be one of these starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="smollm2")
    parser.add_argument("--dtype")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--context", type=int, default=500, help="cached tokens")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)  # what the processes do
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    target = slipstream.load(options.model, "plain", dtype=options.dtype).target
    if options.once:
        print(json.dumps(started(Target(target.model, make_executor(runtime="compiled")), options.context)))
        return 0
    record = provenance(target, model=options.model, context=options.context, rows=list(ROWS))
    with tempfile.TemporaryDirectory() as cache:
        record |= {"first": start(cache), "second": start(cache)}
    for number in ("first", "second"):
        found = record[number]
        print(f"{number} start: compiled in {found['compile_s']} s, {found['packed_mib']} MiB of packed weights")
    if options.out is not None:
        write_record(record, options.out)
    return 0


def start(cache: str) -> dict[str, Any]:
    """What a process with this cache takes."""
    done = subprocess.run(
        [sys.executable, *sys.argv, "--once"], env={**os.environ, CACHE: cache}, capture_output=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def started(target: Target, context: int) -> dict[str, Any]:
    """Seconds until passes of all sizes are compiled, and the memory of what was packed."""
    passes, executor = Passes(target, max(ROWS), context), target.executor
    began = time.perf_counter()
    for rows in ROWS:
        executor.settled(passes.call(rows))
        executor.settled(passes.call(rows))  # the second of its size asks for it
    seconds = time.perf_counter() - began
    return {"compile_s": round(seconds, 1), "packed_mib": round(executor.packed_bytes / 2**20)}


if __name__ == "__main__":
    sys.exit(main())
