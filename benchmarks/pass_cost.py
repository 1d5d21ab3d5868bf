"""What a pass over n rows costs: the whole target, and the target with its skip set left out.

    python benchmarks/pass_cost.py --threads 1 --out benchmarks/records/pass-cost-demo.json

Rows follow a committed prefix, as a draft tree does. The two kinds of pass take turns; times are medians.
"""

from __future__ import annotations

import argparse
import math
import sys
from functools import partial
from pathlib import Path

import torch

import slipstream
from records import provenance, write_record
from slipstream.methods.layer_skip.drafter import LayerSkipDrafter
from slipstream.runtime.timing import Passes, medians, rounds_of

ROWS = (1, 2, 4, 8, 13, 16, 32, 61)
REPEATS = 41


def main() -> int:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="tiny")
    parser.add_argument("--dtype")
    parser.add_argument("--device")
    parser.add_argument("--prefix", type=int, default=200, help="tokens in the cache")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = slipstream.load(options.model, "layer-skip", dtype=options.dtype, device=options.device)
    found = provenance(model.target, model=options.model)
    costs(model, 1, options.prefix)  # warm-up
    rows = [costs(model, n, options.prefix) for n in ROWS]
    skipped = model.drafter.skipped_fraction if isinstance(model.drafter, LayerSkipDrafter) else 0.0
    for row in rows:
        print(f"{row['rows']:3d} rows: full {row['full_ms']:6.2f} ms, skipping {row['skipping_ms']:6.2f} ms")
    if options.out is not None:
        record = {"provenance": found, "prefix": options.prefix, "skipped_fraction": skipped, "passes": rows}
        write_record(record, options.out)
    return 0


def costs(model: slipstream.Model, n: int, prefix: int) -> dict[str, float]:
    """Median milliseconds of a full and of a skipping pass over n sibling rows after `prefix` tokens."""
    drafter = model.drafter
    assert isinstance(drafter, LayerSkipDrafter)
    passes = Passes(model.target, n, prefix)
    calls = [passes.call(n), partial(passes.run, n, drafter.plan.model)]
    times = rounds_of(calls, model.target.device, budget_s=math.inf, most=REPEATS)
    full, skipping = (round(1e3 * seconds, 3) for seconds in medians(times))
    return {"rows": n, "full_ms": full, "skipping_ms": skipping}


if __name__ == "__main__":
    sys.exit(main())
