"""What passes over few rows are made of, and noise, in C: built once on a machine that has a compiler and gains.

A verification or a level of a draft has 2 to 60 rows. PyTorch multiplies bfloat16 by dot products (oneDNN), which
processors with AVX-512 but without matrix units (AMX) do at half the rate of float32, and its product of float32 takes
twice as long over 8 rows as over one. `few_rows.c` multiplies both as float32 and reads each weight once. It attends in
the same way, in float32 throughout, and leaves out what the mask hides. What it gives for a row is the same whatever
other rows there are. Linear layers over the many rows of a prompt are made of such products, too, where that is faster.
Norms and rotary embeddings take one call instead of five to seven, each of which costs as much as the work. The noise
of sampling is that of `core/sampling.py`, to the last bit.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import json
import logging
import mmap
import os
import platform
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from slipstream.core.sampling import gumbel_from_bits, gumbel_rows
from slipstream.errors import SlipstreamError, first_line
from slipstream.files.cache_folder import cache_folder
from slipstream.files.kept_folder import KeptFolder

logger = logging.getLogger(__name__)

MOST_ROWS = 64
"""Rows of one product, and of queries in attention."""
_SOURCE = Path(__file__).with_name("few_rows.c")
_LIBRARY, _MEASURED = "few_rows.so", "measured.json"
_OPTIONS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-ffp-contract=off")
_MOST_WIDTH = 256  # of attention
_SizesOfAttention, _SizesOfRotary = ctypes.c_long * 13, ctypes.c_long * 8
_FORMAT = 3  # of what is kept
DTYPES = (torch.bfloat16, torch.float32)
"""Of numbers that it works on."""
_FEW, _MANY, _INPUTS, _OUTPUTS = 16, 256, 768, 2048  # rows, inputs and outputs of its trial
_ROUNDS = 9
_WORTH = 1.1  # times as fast


class FewRowsError(SlipstreamError):
    """The library cannot be built or does not work here."""


class _Room:
    """Memory in large pages, 2 MiB each, from which packed weights are cut one after another.

    A pass reads all of them in order. In small pages the processor stops fetching ahead at the end of each, every
    4 KiB. A piece of memory is let go of with the last weight in it; where there are no large pages it has small ones.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rest = torch.empty(0, dtype=torch.bfloat16)

    def tensor(self, rows: int, columns: int) -> Tensor:
        """[rows, columns] in bfloat16, with any numbers in it. It begins at a line of the cache."""
        count = rows * columns
        with self._lock:
            if count > self._rest.numel():
                self._rest = _in_large_pages(max(count, _PIECE))
            found = self._rest[:count].view(rows, columns)
            self._rest = self._rest[-(-count // _LINE) * _LINE :]
        return found


_PAGE, _LINE, _PIECE = 2**20, 32, 2**24
"""Numbers in bfloat16: of a large page, of a line of the cache, and of a piece of memory, which takes none until it is
written."""


def _in_large_pages(count: int) -> Tensor:
    """So many numbers in bfloat16, from the beginning of a large page."""
    size = 2 * (-(-count // _PAGE) + 1) * _PAGE
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # what is shared gets no large pages
    with suppress(AttributeError, OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    numbers = torch.frombuffer(memory, dtype=torch.bfloat16)
    first = -numbers.data_ptr() // 2 % _PAGE
    return numbers[first : first + count]


_ROOM = _Room()


class FewRows:
    """The library."""

    def __init__(self, path: Path, many: Collection[torch.dtype] = DTYPES) -> None:
        self.version = path.parent.name
        """Another for another source, compiler, processor or PyTorch."""
        self.many = many
        """Dtypes in which more than `MOST_ROWS` rows are multiplied faster by it, too."""
        library = ctypes.CDLL(str(path))
        pointer, number, whole = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
        self._pack, self._linear = library.slipstream_pack, library.slipstream_linear
        self._pack.argtypes, self._pack.restype = [pointer, pointer, number, number, number, whole], None
        self._linear.argtypes = [pointer] * 4 + [number] * 4 + [whole]
        self._linear.restype = whole
        self._attention = library.slipstream_attention
        self._attention.argtypes = [pointer] * 5 + [_SizesOfAttention, ctypes.c_float, number, whole]
        self._attention.restype = whole
        self._norm, self._rotary = library.slipstream_rms_norm, library.slipstream_rotary
        self._norm.argtypes, self._norm.restype = [pointer] * 3 + [number, number, ctypes.c_float, number, whole], None
        self._rotary.argtypes, self._rotary.restype = [pointer] * 6 + [_SizesOfRotary, number], None
        self._philox = library.slipstream_philox
        self._philox.argtypes = [pointer, number, number, pointer, number, ctypes.c_uint32, ctypes.c_uint64]
        self._philox.restype = None

    def packed(self, weight: Tensor) -> Tensor:
        """A weight [n, k], contiguous, in the form that `linear` reads, which has as many bytes."""
        n, k = weight.shape
        size = weight.element_size()
        packed = _ROOM.tensor(-(-n // 16) * 16, size * -(-k // 2)).view(weight.dtype)
        self._pack(weight.data_ptr(), packed.data_ptr(), n, k, size, torch.get_num_threads())
        return packed

    def linear(self, rows: Tensor, packed: Tensor, bias: Tensor | None, n: int) -> Tensor:
        """Outputs [..., n] of rows [..., k], which are worked on in equal parts of at most `MOST_ROWS`.

        bias: [n], contiguous; all of one dtype.
        """
        rows = rows.contiguous()
        *outer, k = rows.shape
        output = rows.new_empty(*outer, n)
        count = rows.numel() // k
        parts = -(-count // MOST_ROWS)
        offset = None if bias is None else bias.data_ptr()
        first, size = 0, rows.element_size()
        for part in range(1, parts + 1):
            end = count * part // parts
            places = (
                rows.data_ptr() + size * first * k,
                packed.data_ptr(),
                offset,
                output.data_ptr() + size * first * n,
            )
            if self._linear(*places, end - first, n, k, size, torch.get_num_threads()):
                raise MemoryError("no memory for the rows of a linear layer")
            first = end
        return output

    def attention(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
        """softmax(scale q k^T + mask) v. query: [1, heads, n, d]; key and value: [1, key heads, s, d or dv]; mask:
        [1, 1, n, s]; all of one dtype and of sizes that `attends` says yes to. Returns [1, n, heads, dv], contiguous.
        """
        query, key, value, mask = map(_by_rows, (query, key, value, mask))
        _, heads, n, d = query.shape
        width = value.shape[-1]
        output = query.new_empty(1, n, heads, width)
        places = (query.stride(1), query.stride(2), key.stride(1), key.stride(2), value.stride(1), value.stride(2))
        sizes = (heads, key.shape[1], n, key.shape[2], d, width, *places, mask.stride(2))
        failed = self._attention(
            query.data_ptr(),
            key.data_ptr(),
            value.data_ptr(),
            mask.data_ptr(),
            output.data_ptr(),
            _SizesOfAttention(*sizes),
            scale,
            query.element_size(),
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError("no memory for the scores of attention")
        return output

    def rms_norm(self, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        """An RMS norm, rounded as Llama's: weight * rows / sqrt(mean(rows^2) + eps). rows: [..., n]; weight: [n]."""
        rows = rows.contiguous()
        n = rows.shape[-1]
        output = torch.empty_like(rows)
        places = (rows.data_ptr(), weight.data_ptr(), output.data_ptr())
        self._norm(*places, rows.numel() // n, n, eps, rows.element_size(), torch.get_num_threads())
        return output

    def rotary(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [1, heads, n, d] and keys [1, key heads, n, d], turned as by Llama to the last bit.

        cos and sin: [1, n, d], contiguous. d: a multiple of 32, numbers that lie together. The results lie as
        [n, heads, d].
        """
        _, heads, n, d = q.shape
        key_heads = k.shape[1]
        queries, keys = q.new_empty(1, n, heads, d), k.new_empty(1, n, key_heads, d)
        sizes = (heads, key_heads, n, d, q.stride(1), q.stride(2), k.stride(1), k.stride(2))
        places = (q.data_ptr(), k.data_ptr(), cos.data_ptr(), sin.data_ptr(), queries.data_ptr(), keys.data_ptr())
        self._rotary(*places, _SizesOfRotary(*sizes), q.element_size())
        return queries.transpose(1, 2), keys.transpose(1, 2)

    def gumbel_rows(self, seed: int, stream: int, positions: Tensor, vocab_size: int) -> Tensor:
        """What `core.sampling.gumbel_rows` returns for one seed, to the last bit. positions: [p] int64, on the CPU."""
        pairs = (vocab_size + 1) // 2
        size = -(-pairs // 8) * 16
        bits = torch.empty(len(positions), size, dtype=torch.int64)
        positions = positions.contiguous()
        self._philox(bits.data_ptr(), size, pairs, positions.data_ptr(), len(positions), stream, seed)
        return gumbel_from_bits(bits[:, :vocab_size])

    @staticmethod
    def attends(query: Tensor, key: Tensor, value: Tensor) -> bool:
        """Whether `attention` takes such queries, keys and values."""
        widths = (query.shape[-1], value.shape[-1])
        fits = query.shape[0] == 1 and query.shape[2] <= MOST_ROWS and query.shape[1] % key.shape[1] == 0
        return fits and all(width % 16 == 0 and width <= _MOST_WIDTH for width in widths)


def _by_rows(tensor: Tensor) -> Tensor:
    """A tensor whose last dimension lies together."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def few_rows(dtype: torch.dtype = torch.bfloat16) -> FewRows | None:
    """The library where it works here and is faster than PyTorch in this dtype; None otherwise, and the log says why.

    It is built at the first call on a machine, in seconds.
    """
    if dtype not in DTYPES:
        return None
    library, worth = _tried()
    return library if dtype in worth else None


@functools.cache
def _tried() -> tuple[FewRows | None, tuple[torch.dtype, ...]]:
    """The library, and the dtypes in which it is faster over few rows."""
    try:
        folder = _built()
        measured = json.loads((folder / _MEASURED).read_text(encoding="utf-8"))["times_as_fast"]
        few, many = ({one: float(measured[_name(one)][at]) for one in DTYPES} for at in (0, 1))
        library = FewRows(folder / _LIBRARY, [one for one in DTYPES if many[one] >= _WORTH])
    except (SlipstreamError, OSError) as error:
        logger.info("linear layers over few rows are left to PyTorch: %s", first_line(error))
        return None, ()
    for one in DTYPES:
        text = "linear layers in %s: %.1f times as fast as PyTorch over few rows, %.1f times over many"
        logger.info(text, _name(one), few[one], many[one])
    return library, tuple(one for one in DTYPES if few[one] >= _WORTH)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def with_version(name: str) -> str:
    """A name for what a runtime's passes cost, with the version of the library that they run by, if they do."""
    library, worth = _tried()
    return f"{name}, few rows {library.version}" if library is not None and worth else name


def _built() -> Path:
    """The folder of the library and of what it brings, made if it is not there. Raises FewRowsError."""
    if platform.machine() not in ("x86_64", "AMD64") or os.name != "posix":
        raise FewRowsError(f"it is written for Linux on x86-64, not {platform.system()} on {platform.machine()}")
    compiler = _compiler()
    source = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()
    origin = {
        "format": str(_FORMAT),
        "source": source,
        "compiler": compiler,
        "processor": _processor(),
        "torch": torch.__version__,
    }
    name = hashlib.sha256(repr(sorted(origin.items())).encode()).hexdigest()[:16]
    kept = KeptFolder(cache_folder() / "few_rows" / name, origin)
    if kept.flaw() is not None:
        kept.make(lambda folder: _build(compiler, folder), num_bytes=1_000_000)
    return kept.path


def _compiler() -> str:
    """The C compiler: CC, else gcc. Clang's OpenMP is another than PyTorch's. Raises FewRowsError."""
    given = os.environ.get("CC") or "gcc"
    if shutil.which((shlex.split(given) or [""])[0]) is None:
        raise FewRowsError("no C compiler is installed (gcc); set CC to name one")
    return given


def _build(compiler: str, folder: Path) -> None:
    """Compile, link, try and time the library.

    PyTorch's own OpenMP is found when it is loaded, so that there is one pool of threads.
    """
    command, unit = shlex.split(compiler), folder / "few_rows.o"
    for call in (
        [*command, *_OPTIONS, "-c", str(_SOURCE), "-o", str(unit)],
        [*command, "-shared", str(unit), "-o", str(folder / _LIBRARY)],
    ):
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line]
            raise FewRowsError(f"{compiler} cannot compile it: {next(iter(errors), done.stderr.strip())}")
    unit.unlink()
    library = FewRows(folder / _LIBRARY)
    for dtype in DTYPES:
        _check(library, dtype)
    faster = {_name(one): [_times_as_fast(library, rows, one) for rows in (_FEW, _MANY)] for one in DTYPES}
    (folder / _MEASURED).write_text(json.dumps({"times_as_fast": faster}), encoding="utf-8")


def _processor() -> str:
    """Names what `-march=native` looks at."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return hashlib.sha256("\n".join(sorted({one for one in lines if one.startswith("flags")})).encode()).hexdigest()
    return platform.processor()


def _check(library: FewRows, dtype: torch.dtype) -> None:
    """Raises FewRowsError where it computes anything else than it should."""
    generator = torch.Generator().manual_seed(0)
    unit = torch.finfo(dtype).eps
    for count, k in itertools.product((1, 7, 30, MOST_ROWS), (37, 500)):
        weight, bias = (torch.randn(size, generator=generator).to(dtype) for size in ((70, k), (70,)))
        rows = torch.randn(count, k, generator=generator).to(dtype)
        expected = rows.double() @ weight.double().T + bias.double()
        found = library.linear(rows, library.packed(weight), bias, 70).double()
        if not bool(((found - expected).abs() <= unit * expected.abs() + 1e-4).all()):
            raise FewRowsError("its linear layers are wrong here")
    query, key, value = (torch.randn(1, size, 20, 32, generator=generator).to(dtype) for size in (4, 2, 2))
    mask = torch.zeros(20, 20).masked_fill(~torch.ones(20, 20).tril().bool(), -3e38).to(dtype)[None, None]
    found = library.attention(query, key, value, mask, 0.5).double()
    key, value = (one.double().repeat_interleave(2, dim=1) for one in (key, value))
    expected = scaled_dot_product_attention(query.double(), key, value, attn_mask=mask.double(), scale=0.5)
    if not bool(((found - expected.transpose(1, 2)).abs() <= 2 * unit + 1e-4).all()):
        raise FewRowsError("its attention is wrong here")
    rows, weight = (torch.randn(size, generator=generator).to(dtype) for size in ((3, 70), (70,)))
    expected = weight.double() * (rows.double() * (rows.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt())
    if not bool(((library.rms_norm(rows, weight, 1e-5).double() - expected).abs() <= 4 * unit * expected.abs()).all()):
        raise FewRowsError("its norms are wrong here")
    sizes = ((1, 4, 3, 32), (1, 2, 3, 32), (1, 3, 32), (1, 3, 32))
    query, key, cos, sin = (torch.randn(size, generator=generator).to(dtype) for size in sizes)
    for heads, found in zip((query, key), library.rotary(query, key, cos, sin), strict=True):
        if not torch.equal(found, heads * cos + torch.cat((-heads[..., 16:], heads[..., :16]), dim=-1) * sin):
            raise FewRowsError("its rotary embedding is wrong here")
    asked = (2**40 + 3, 5, torch.tensor([7, 2**33]), 37)
    if not torch.equal(library.gumbel_rows(*asked), gumbel_rows(*asked)):
        raise FewRowsError("its noise is wrong here")


def _times_as_fast(library: FewRows, count: int, dtype: torch.dtype) -> float:
    """How many times it is as fast as PyTorch over so many rows, which gets few in bfloat16 with packed weights."""
    rows, weight = (torch.ones(size, _INPUTS, dtype=dtype) for size in (count, _OUTPUTS))
    theirs: Callable[[], object] = partial(torch.nn.functional.linear, rows, weight)
    if count <= MOST_ROWS and dtype == torch.bfloat16:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        theirs = partial(torch.ops.mkldnn._linear_pointwise, rows, packed, None, "none", [], "")
    calls: list[Callable[[], object]] = [theirs, partial(library.linear, rows, library.packed(weight), None, _OUTPUTS)]
    times: list[list[float]] = [[], []]
    for _ in range(_ROUNDS):
        for call, found in zip(calls, times, strict=True):
            began = time.perf_counter()
            call()
            found.append(time.perf_counter() - began)
    return min(times[0]) / min(times[1])
