r"""What a pass over n rows costs on a CPU with one thread and with all, for small Llamas of random weights.

    python benchmarks/thread_cost.py --out benchmarks/records/thread-cost.json

With several threads, how they wait for each other matters: asleep (OMP_WAIT_POLICY=PASSIVE, what the command line sets)
or spinning (OpenMP's own choice). That is settled before PyTorch is imported, so each setting has processes of its own;
they take turns, and the median over rounds counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from records import provenance, write_record
from slipstream.runtime.costs import measure_verification
from slipstream.target.target import Target

SIZES = ((256, 14), (384, 12), (512, 12), (768, 12))  # hidden size, layers
ROWS = (1, 2, 4, 8, 16)
SETTINGS = {
    "one": {"OMP_NUM_THREADS": "1"},
    "asleep": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spinning": {},
}


def main() -> int:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)  # what the processes do
    options = parser.parse_args()
    if options.measure:
        print(json.dumps([measured(*size) for size in SIZES]))
        return 0
    source = provenance(small_llama(*SIZES[0]), model="random Llamas", rounds=options.rounds)
    found: dict[str, list[Any]] = {name: [] for name in SETTINGS}
    for _ in range(options.rounds):
        for name in SETTINGS:
            found[name].append(in_a_process(name))
    models = [summary(index, found) for index in range(len(SIZES))]
    for model in models:
        for name, one in model["ms_by_rows"].items():
            cells = "".join(f"{rows:>5} rows {ms:6.1f} ms" for rows, ms in one.items())
            print(f"{model['parameters'] / 1e6:4.0f}M {name:9}{cells}")
    if options.out is not None:
        write_record({"what": (__doc__ or "").splitlines()[0], "provenance": source, "models": models}, options.out)
    return 0


def small_llama(hidden: int, layers: int) -> Target:
    """A Llama of random weights in float32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 5 // 2,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        vocab_size=8192,
        tie_word_embeddings=True,
    )
    return Target(LlamaForCausalLM(config))


def measured(hidden: int, layers: int) -> dict[str, Any]:
    """Parameters of one model, and seconds of its passes by rows."""
    target = small_llama(hidden, layers)
    return {"parameters": target.model.num_parameters(), "seconds": dict(measure_verification(target, max(ROWS)))}


def in_a_process(setting: str) -> Any:
    """`measured` of all sizes under a setting."""
    mine = {name: text for name, text in os.environ.items() if not name.startswith("OMP_")}
    command = [sys.executable, __file__, "--measure"]
    done = subprocess.run(command, env={**mine, **SETTINGS[setting]}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def summary(index: int, found: dict[str, list[Any]]) -> dict[str, Any]:
    """Medians over rounds, in milliseconds, by setting and rows."""
    return {
        "hidden_size": SIZES[index][0],
        "layers": SIZES[index][1],
        "parameters": found["one"][0][index]["parameters"],
        "ms_by_rows": {
            name: {
                str(rows): round(1e3 * statistics.median(one[index]["seconds"][str(rows)] for one in rounds), 2)
                for rows in ROWS
            }
            for name, rounds in found.items()
        },
    }


if __name__ == "__main__":
    sys.exit(main())
