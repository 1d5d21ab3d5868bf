"""What to expect of speculative decoding on large GPUs: calculated from published figures, not measured.

    python benchmarks/scale_model.py [--check]

Writes the tables of docs/scale.md, between `<!-- scale:begin -->` and `<!-- scale:end -->`. With --check nothing is
written: the exit code is 1 if the page holds others. A pass takes as long as the slower of reading memory and
arithmetic, at full published rates, and then what the GPUs exchange; real speeds lie below.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from math import ceil
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scale.md"
BEGIN, END = "<!-- scale:begin -->", "<!-- scale:end -->"

BYTES = 2  # bfloat16
CONTEXT = 4096  # tokens in the cache
NODES, DEPTH = 60, 6  # of a draft tree, as EAGLE-2 has them
TAUS = (2, 3, 4)  # tokens a cycle, the root's included
ALL_REDUCE_S = 10e-6  # of starting one; assumed, since nobody publishes it


@dataclass(frozen=True)
class Gpu:
    """Figures of NVIDIA's data sheets."""

    name: str
    memory_gb: float
    bandwidth: float  # bytes/s of memory
    flops: float  # FLOP/s in bfloat16, dense
    nvlink: float  # bytes/s, both directions together


A100 = Gpu("A100 80 GB SXM", 80, 2.039e12, 312e12, 600e9)
H100 = Gpu("H100 80 GB SXM", 80, 3.35e12, 989e12, 900e9)
H200 = Gpu("H200 141 GB SXM", 141, 4.8e12, 989e12, 900e9)


@dataclass(frozen=True)
class Llm:
    """Sizes out of a model's config.json."""

    name: str
    parameters: float
    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocabulary: int

    @property
    def weights(self) -> float:
        """Bytes of all weights."""
        return BYTES * self.parameters

    @property
    def kv_of_token(self) -> int:
        """Bytes of keys and values that a token leaves in the cache."""
        return 2 * BYTES * self.num_layers * self.num_kv_heads * self.head_dim

    @property
    def drafted_level(self) -> float:
        """Bytes that an EAGLE head reads for a level: one layer, what feeds it, and the target's output matrix."""
        layers = self.parameters - 2 * self.vocabulary * self.hidden
        return BYTES * (layers / self.num_layers + 2 * self.hidden**2 + self.vocabulary * self.hidden)


B8 = Llm("8B", 8.03e9, 32, 4096, 32, 8, 128, 128256)
B70 = Llm("70B", 70.55e9, 80, 8192, 64, 8, 128, 128256)


@dataclass(frozen=True)
class Setup:
    """A model on GPUs. split: each layer over all of them (tensor parallel), else layers one GPU after another."""

    llm: Llm
    gpu: Gpu
    num_gpus: int = 1
    split: bool = True

    @property
    def at_once(self) -> int:
        """GPUs that work at the same time."""
        return self.num_gpus if self.split else 1

    def memory_s(self) -> float:
        """Of reading weights and cache once."""
        return (self.llm.weights + CONTEXT * self.llm.kv_of_token) / (self.at_once * self.gpu.bandwidth)

    def arithmetic_s(self, rows: int) -> float:
        """Of multiplying rows with all weights, and with the cached keys and values."""
        attention = 4 * self.llm.num_layers * self.llm.num_heads * self.llm.head_dim * CONTEXT
        return rows * (2 * self.llm.parameters + attention) / (self.at_once * self.gpu.flops)

    def exchange_s(self, rows: int) -> float:
        """Of two all-reduces a layer over NVLink, each of which sends 2 (n - 1) / n of the rows' hidden states."""
        if self.at_once == 1:
            return 0.0
        sent = 2 * (self.num_gpus - 1) / self.num_gpus * rows * self.llm.hidden * BYTES
        return 2 * self.llm.num_layers * (ALL_REDUCE_S + sent / (self.gpu.nvlink / 2))

    def pass_s(self, rows: int) -> float:
        """Of one pass of the target."""
        return max(self.memory_s(), self.arithmetic_s(rows)) + self.exchange_s(rows)

    def cycle_s(self) -> float:
        """Of drafting a tree on one GPU and verifying it."""
        return DEPTH * self.llm.drafted_level / self.gpu.bandwidth + self.pass_s(1 + NODES)

    def plain(self) -> float:
        """Tokens a second without drafts."""
        return 1 / self.pass_s(1)

    def drafted(self, tau: float) -> float:
        """Tokens a second with drafts."""
        return tau / self.cycle_s()

    def free_gb(self) -> float:
        """Memory of all GPUs that the weights leave, before the program's own."""
        return self.num_gpus * self.gpu.memory_gb - self.llm.weights / 1e9

    def __str__(self) -> str:
        how = "" if self.num_gpus == 1 else ", each layer split" if self.split else ", layer after layer"
        return f"{self.llm.name} on {self.num_gpus} {self.gpu.name}{how}"


SETUPS = (
    Setup(B8, A100),
    Setup(B8, H100),
    Setup(B8, H200),
    Setup(B70, H100, 4, split=False),
    Setup(B70, H100, 4),
    Setup(B70, H100, 8),
    Setup(B70, H200, 8),
)
FLEETS = ((Setup(B8, H100), 10, 300), (Setup(B70, H100, 4), 10, 300), (Setup(B70, H100, 8), 10, 300))
"""Setup of a copy, requests a second, tokens of an answer."""


def gpu_table() -> list[str]:
    """The published figures."""
    rows = [
        (one.name, f"{one.memory_gb:g} GB", f"{one.bandwidth / 1e12:.3g} TB/s", f"{one.flops / 1e12:.0f} TFLOP/s",
         f"{one.nvlink / 1e9:.0f} GB/s")
        for one in (A100, H100, H200)
    ]  # fmt: skip
    return table(("GPU", "memory", "bandwidth", "bfloat16, dense", "NVLink"), rows)


def pass_table() -> list[str]:
    """Where a pass's time goes."""
    tree = 1 + NODES
    rows = [
        (str(one), f"{one.free_gb():.0f} GB", ms(one.memory_s()), ms(one.arithmetic_s(1)), ms(one.arithmetic_s(tree)),
         ms(one.exchange_s(1)), ms(one.exchange_s(tree)))
        for one in SETUPS
    ]  # fmt: skip
    head = ("", "left for texts", "memory", "arithmetic, 1 row", f"{tree} rows", "exchange, 1 row", f"{tree} rows")
    return table(head, rows)


def speed_table() -> list[str]:
    """Tokens a second, and how many times plain decoding's that is."""
    rows = [
        (str(one), f"{one.plain():.0f}", ms(one.cycle_s()), *(speed(one, tau) for tau in TAUS), f"{even_tau(one):.2f}")
        for one in SETUPS
    ]
    return table(("", "plain", "cycle", *(f"tau {tau}" for tau in TAUS), "tau that breaks even"), rows)


def fleet_table() -> list[str]:
    """Copies for a stream of requests, at tau 3."""
    rows = []
    for one, requests, tokens in FLEETS:
        needed = [ceil(requests * tokens / each) for each in (one.plain(), one.drafted(3))]
        gpus = [copies * one.num_gpus for copies in needed]
        rows.append(
            (str(one), f"{requests} x {tokens}", *(f"{a} ({b} GPUs)" for a, b in zip(needed, gpus, strict=True)))
        )
    return table(("a copy", "requests/s x tokens", "copies, plain", "copies, tau 3"), rows)


def even_tau(setup: Setup) -> float:
    """Tokens a cycle at which drafting is as fast as plain decoding."""
    return setup.cycle_s() / setup.pass_s(1)


def speed(setup: Setup, tau: float) -> str:
    """As in "300 (2.1)"."""
    return f"{setup.drafted(tau):.0f} ({setup.drafted(tau) / setup.plain():.1f}x)"


def ms(seconds: float) -> str:
    """To a hundredth of a millisecond."""
    return f"{1000 * seconds:.2f} ms"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """In Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def block() -> str:
    """All that the page quotes."""
    parts = (
        ("**Published figures.**", gpu_table()),
        (f"**Calculated: a pass**, with {CONTEXT} tokens in the cache.", pass_table()),
        (f"**Calculated: tokens a second of one text**, trees of {NODES} nodes in {DEPTH} levels.", speed_table()),
        ("**Calculated: a fleet.**", fleet_table()),
    )
    return "\n\n".join(f"{title}\n\n" + "\n".join(lines) for title, lines in parts)


def with_block(text: str) -> str:
    """The page with today's tables."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{block()}\n{END}{rest.split(END)[1]}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page has other tables")
    options = parser.parse_args(arguments)
    old = options.page.read_text(encoding="utf-8")
    new = with_block(old)
    if not options.check:
        options.page.write_text(new, encoding="utf-8")
    elif new != old:
        print(f"{options.page} has other tables; run: python benchmarks/scale_model.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
