"""Eager against packed and compiled passes, in turns in one process, and how long compiling takes.

python benchmarks/compiled_passes.py -m smollm2 --dtype bf16 --threads 2 --out benchmarks/records/compiled-passes.json
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import slipstream
from records import provenance, write_record
from slipstream.runtime.executor import make_executor
from slipstream.runtime.timing import Passes, timed
from slipstream.target.target import Target

ROWS = (1, 4, 8, 12, 16, 32)
RUNTIMES = ("eager", "packed", "compiled")


def main() -> None:
    """Time the passes, print a line a size, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="smollm2")
    parser.add_argument("--dtype")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--context", type=int, default=500, help="cached tokens")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = slipstream.load(options.model, "plain", dtype=options.dtype, runtime="eager").target.model
    targets = {name: Target(model, make_executor("exact", name)) for name in RUNTIMES}
    record = provenance(targets["eager"], model=options.model, context=options.context, rounds=options.rounds)
    passes = {name: Passes(target, max(ROWS), options.context) for name, target in targets.items()}
    compiling = targets["compiled"].executor
    before, began = peak_mib(), time.perf_counter()
    for _ in range(2):  # what is made ready of the first passes is run, and asks for what else is needed
        compiling.settle([passes["compiled"].call(rows) for rows in ROWS])
    record |= {
        "compile_s": round(time.perf_counter() - began, 1),
        "packed_mib": round(compiling.packed_bytes / 2**20),
        "peak_growth_mib": round(peak_mib() - before),
        "passes": [size(rows, {name: one.call(rows) for name, one in passes.items()}, options.rounds) for rows in ROWS],
    }
    for one in record["passes"]:
        times = ", ".join(f"{one[f'{name}_ms']:.1f} {name}" for name in RUNTIMES)
        print(f"{one['rows']:3} rows, ms: {times}; eager over these {one['ratio_packed']}, {one['ratio_compiled']}")
    print(f"compiled in {record['compile_s']} s, {record['packed_mib']} MiB of packed weights")
    if options.out is not None:
        write_record(record, options.out)


def size(rows: int, calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """Milliseconds of passes over so many rows, and eager over the others as medians of neighbours."""
    device = torch.device("cpu")
    seconds: dict[str, list[float]] = {name: [] for name in RUNTIMES}
    for _ in range(rounds):
        for name in RUNTIMES:
            calls[name]()
            seconds[name].append(min(timed(calls[name], device) for _ in range(2)))
    found = {f"{name}_ms": round(1000 * statistics.median(times), 2) for name, times in seconds.items()}
    ratios = {f"ratio_{name}": ratio(seconds["eager"], seconds[name]) for name in RUNTIMES[1:]}
    return {"rows": rows, **found, **ratios}


def ratio(ones: list[float], others: list[float]) -> float:
    """Of times that were taken one after the other."""
    return round(statistics.median(one / other for one, other in zip(ones, others, strict=True)), 3)


def peak_mib() -> float:
    """Largest memory that the process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
