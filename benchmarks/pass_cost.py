"""What a pass over n rows costs: the whole target, and the target with its skip set left out.

    python benchmarks/pass_cost.py --threads 1 --out benchmarks/records/pass-cost-demo.json

Rows follow a committed prefix, as a draft tree does. The two kinds of pass take turns; times are medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

import slipstream
from records import provenance, write_record
from slipstream.methods.layer_skip.drafter import LayerSkipDrafter

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
    target = model.target
    cache = target.new_cache(extra_slots=max(ROWS))
    tokens = torch.arange(prefix + n, device=target.device) % target.vocab_size
    positions = torch.arange(prefix, device=target.device)
    target.forward(tokens[:prefix], positions, target.causal(prefix), cache, last_logits_only=True)
    cache.commit(None, prefix)
    siblings = torch.eye(n, dtype=torch.bool, device=target.device)
    depth = torch.full((n,), prefix, device=target.device)

    def run(model: nn.Module | None = None) -> None:
        target.forward(tokens[prefix:], depth, siblings, cache, instead=model).logits[0, 0, 0].item()

    drafter = model.drafter
    assert isinstance(drafter, LayerSkipDrafter)
    times: dict[str, list[float]] = {"full_ms": [], "skipping_ms": []}
    for _ in range(REPEATS):
        times["full_ms"].append(milliseconds(run))
        times["skipping_ms"].append(milliseconds(partial(run, drafter.plan.model)))
    return {"rows": n, **{name: round(statistics.median(found), 3) for name, found in times.items()}}


def milliseconds(run: Callable[[], None]) -> float:
    """Wall time of one call, which must wait for the device itself."""
    began = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - began)


if __name__ == "__main__":
    sys.exit(main())
