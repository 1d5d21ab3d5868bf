"""All linear layers of a model: PyTorch against the product of ours for few rows, in turns.

    python benchmarks/few_rows.py -m smollm2 --dtype bf16 --threads 2 --out benchmarks/records/few-rows-bf16.json

In bfloat16 PyTorch gets weights packed for oneDNN up to 64 rows. More are those of a prompt, which it gets as they are,
as `transformers` runs them; ours takes them in parts. Beside them stands what the processor does at most with numbers
in registers (`peak.c`, compiled with gcc): dot products of bfloat16, and multiplications of float32.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import slipstream
from records import provenance, write_record
from slipstream.runtime.few_rows import MOST_ROWS, FewRows, few_rows

ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 256)
PEAK = Path(__file__).with_name("peak.c")


def main() -> None:
    """Time the products, print a line a size, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="smollm2")
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    target = slipstream.load(options.model, "plain", dtype=options.dtype, runtime="eager").target
    library = few_rows(target.dtype)
    if library is None:
        parser.error("the product for few rows is not built here, or no faster")
    record = provenance(target, model=options.model, rounds=options.rounds)
    weights = [one.weight.detach() for one in target.model.modules() if isinstance(one, nn.Linear)]
    dots, products = peaks(options.threads)
    record |= {
        "weights_mib": round(sum(one.nbytes for one in weights) / 2**20),
        "peak_bfloat16_dot_gflops": dots,
        "peak_float32_gflops": products,
        "sizes": [size(count, weights, library, options.rounds) for count in ROWS],
    }
    print(f"in registers: {dots} GFLOP/s of bfloat16 dot products, {products} of float32")
    for one in record["sizes"]:
        times = f"{one['pytorch_ms']:.1f} ms by PyTorch, {one['own_ms']:.1f} by ours"
        print(f"{one['rows']:3} rows: {times}, {one['ratio']:.2f}")
    if options.out is not None:
        write_record(record, options.out)


def size(count: int, weights: list[Tensor], library: FewRows, rounds: int) -> dict[str, Any]:
    """Median times of all layers over so many rows."""
    dtype = weights[0].dtype
    rows = {width: torch.randn(count, width).to(dtype) for width in {one.shape[1] for one in weights}}
    own = [(library.packed(one), one.shape) for one in weights]
    is_packed = count <= MOST_ROWS and dtype == torch.bfloat16
    packed = [(torch.ops.mkldnn._reorder_linear_weight(one, 1), one.shape) for one in weights] if is_packed else []
    calls: dict[str, Callable[[], object]] = {
        "pytorch": lambda: (
            [torch.ops.mkldnn._linear_pointwise(rows[shape[1]], one, None, "none", [], "") for one, shape in packed]
            if is_packed
            else [nn.functional.linear(rows[one.shape[1]], one) for one in weights]
        ),
        "own": lambda: [library.linear(rows[shape[1]], one, None, shape[0]) for one, shape in own],
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    median = {name: 1e3 * statistics.median(found[1:]) for name, found in times.items()}
    operations = 2 * count * sum(one.numel() for one in weights)
    return {
        "rows": count,
        **{f"{name}_ms": round(one, 2) for name, one in median.items()},
        **{f"{name}_gflops": round(operations / one / 1e6) for name, one in median.items()},
        "ratio": round(median["pytorch"] / median["own"], 3),
    }


def peaks(threads: int) -> tuple[int, int]:
    """1e9 operations a second, of bfloat16 dot products and of float32."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peak"
        compiled = ["gcc", "-O3", "-march=native", "-pthread", str(PEAK), "-o", str(program)]
        subprocess.run(compiled, check=True)
        told = subprocess.run([str(program), str(threads)], check=True, capture_output=True, text=True).stdout.split()
    return int(told[0]), int(told[1])


if __name__ == "__main__":
    main()
