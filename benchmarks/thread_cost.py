r"""How PyTorch's threads should wait for each other on a CPU, on a machine that is idle and on one that is busy.

    python benchmarks/thread_cost.py --out benchmarks/records/thread-cost.json

With several threads a pass hangs on how they wait: asleep, spinning without limit (GNU OpenMP's own choice), or
spinning for a while first (GOMP_SPINCOUNT). That is settled before PyTorch is imported, so each setting has processes
of its own; they take turns, and the median over rounds counts. Busy: as many other processes as there are cores, each
of which computes without a pause.

Models: the two that ship or come as a package, and small Llamas of random weights in float32, for where a second thread
begins to pay. On a machine with other work to do, `--alone` puts that aside (Linux, as root): what is timed has
real-time priority in the idle half, and in the busy half a niceness of -15, as have the processes that keep it busy.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

ROWS = (1, 4, 16)
SMALL = ((384, 12), (768, 12))  # hidden size, layers
SETTINGS = {
    "one": {"OMP_NUM_THREADS": "1"},
    "asleep": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin 2000": {"GOMP_SPINCOUNT": "2000"},
    "spin 6000": {"GOMP_SPINCOUNT": "6000"},
    "spin 20000": {"GOMP_SPINCOUNT": "20000"},
    "spinning": {},
}
SITUATIONS = {"idle": ("chrt", "-f", "10"), "busy": ("nice", "-n", "-15")}
"""And what puts other work aside in each."""
TIMED_S = 1.5  # of a model's passes in one process
OWN = ("OMP_", "GOMP_", "KMP_")


def main() -> int:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help="put other work of this machine aside")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)  # what the processes do
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured()))
        return 0
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(options.rounds):
        for situation, aside in SITUATIONS.items():
            first = aside if options.alone else ()
            with others(os.cpu_count() or 1 if situation == "busy" else 0, first):
                for setting in SETTINGS:
                    found.setdefault((situation, setting), []).append(in_a_process(setting, first))
    models = [summary(name, found) for name in next(iter(found.values()))[0]]
    for model in models:
        for situation in SITUATIONS:
            for setting, one in model["ms_by_rows"][situation].items():
                cells = "".join(f"{rows:>5} rows {ms:8.1f} ms" for rows, ms in one.items())
                print(f"{model['name']:20}{situation:5}{setting:12}{cells}")
    if options.out is not None:
        write(models, options)
    return 0


def write(models: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """The record."""
    from records import provenance, write_record

    source = provenance(small_llama(*SMALL[0]), model="see models", rounds=options.rounds, alone=options.alone)
    write_record({"what": (__doc__ or "").splitlines()[0], "provenance": source, "models": models}, options.out)


def measured() -> dict[str, dict[str, Any]]:
    """By model: parameters, and the median seconds of its passes by rows."""
    return {name: timed_passes(make()) for name, make in targets().items()}


def targets() -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    import torch  # noqa: F401 (before slipstream, which would set how threads wait)

    import slipstream

    def shipped(name: str, dtype: str) -> Any:
        return slipstream.load(name, "plain", dtype=dtype).target

    found: dict[str, Callable[[], Any]] = {
        "smollm2 bfloat16": partial(shipped, "smollm2", "bfloat16"),
        "tiny float32": partial(shipped, "tiny", "float32"),
    }
    return found | {f"llama {hidden} x {layers}": partial(small_llama, hidden, layers) for hidden, layers in SMALL}


def timed_passes(target: Any) -> dict[str, Any]:
    """Parameters of a target, and the median seconds of its passes by rows, with all threads of the setting."""
    import torch

    from slipstream.runtime.timing import Passes, medians, rounds_of

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    passes = Passes(target, max(ROWS), 64)
    times = rounds_of([passes.call(rows) for rows in ROWS], target.device, budget_s=TIMED_S, most=40)
    seconds = dict(zip(map(str, ROWS), medians(times), strict=True))
    return {"parameters": target.model.num_parameters(), "seconds": seconds}


def small_llama(hidden: int, layers: int) -> Any:
    """A Llama of random weights in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from slipstream.target.target import Target

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


@contextmanager
def others(count: int, first: Sequence[str]) -> Iterator[None]:
    """While so many other processes compute without a pause."""
    burning = [subprocess.Popen([*first, sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for one in burning:
            one.kill()
            one.wait()


def in_a_process(setting: str, first: Sequence[str]) -> dict[str, Any]:
    """`measured` under a setting."""
    mine = {name: text for name, text in os.environ.items() if not name.startswith(OWN)}
    command = [*first, sys.executable, __file__, "--measure"]
    done = subprocess.run(command, env={**mine, **SETTINGS[setting]}, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def summary(name: str, found: Mapping[tuple[str, str], Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over rounds, in milliseconds, by situation, setting and rows."""

    def ms(rounds: Sequence[dict[str, Any]]) -> dict[str, float]:
        return {
            str(rows): round(1e3 * statistics.median(one[name]["seconds"][str(rows)] for one in rounds), 2)
            for rows in ROWS
        }

    by_rows = {one: {setting: ms(found[one, setting]) for setting in SETTINGS} for one in SITUATIONS}
    return {"name": name, "parameters": found["idle", "one"][0][name]["parameters"], "ms_by_rows": by_rows}


if __name__ == "__main__":
    sys.exit(main())
