"""Carrying the encoded corpus, and large checkpoints, to another machine through a channel with size limits.

`pack` writes corpus, mix and tokenizer as one xz-compressed tar; `shard` cuts a file into pieces with checksums.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from slipstream.errors import ArtifactError, InputError
from slipstream.training.data.corpus import Documents

MIB = 1024 * 1024
_XZ: list[dict[str, Any]] = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 64 * MIB, "lc": 3, "lp": 1, "pb": 1}]
"""Literal and position contexts for 16-bit elements."""


def pack(prepared: Path, file: Path, *, sample: float = 1.0, limit_mib: float = 60.0, seed: int = 0) -> int:
    """Pack the corpus that was prepared in a folder; returns the size in bytes.

    `sample` keeps a random share of every source's training documents; the held-out split is always whole.
    Raises InputError if the result is larger than `limit_mib`, naming the sample that would fit.
    """
    if not 0 < sample <= 1:
        raise InputError(f"sample {sample} is not a share between 0 and 1.")
    if not (prepared / "corpus" / "index.json").is_file():
        raise InputError(f"{prepared} holds no prepared corpus. Prepare one first, by training or by `train pack`.")
    temporary = file.with_name(file.name + ".tmp")
    with lzma.open(temporary, "wb", filters=_XZ) as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
        for path in sorted((prepared / "tokenizer").iterdir()):
            _add(archive, f"tokenizer/{path.name}", path.read_bytes())
        for path in sorted((prepared / "corpus").glob("*.npz")):
            share = sample if path.name.endswith(".train.npz") else 1.0
            _add(archive, f"corpus/{path.name}", _sampled(path, share, seed))
        index = json.loads((prepared / "corpus" / "index.json").read_text())
        if sample < 1:
            index["key"] += f"-sample-{sample:g}-{seed}"
        _add(archive, "corpus/index.json", json.dumps(index).encode())
    size = temporary.stat().st_size
    if size > limit_mib * MIB:
        temporary.unlink()
        fitting = 0.97 * sample * limit_mib * MIB / size
        raise InputError(
            f"The packed corpus has {size / MIB:.1f} MiB, the limit is {limit_mib:g} MiB. Try --sample {fitting:.2f}."
        )
    os.replace(temporary, file)
    return size


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _sampled(path: Path, share: float, seed: int) -> bytes:
    documents = Documents.load(path)
    if share < 1 and len(documents):
        name = int.from_bytes(hashlib.blake2b(path.name.encode(), digest_size=4).digest(), "big")
        kept = np.random.default_rng((seed, name)).permutation(len(documents))[: max(1, round(share * len(documents)))]
        documents = Documents.of(documents[int(i)] for i in sorted(kept))
    buffer = io.BytesIO()
    np.savez(buffer, tokens=documents.tokens, offsets=documents.offsets)
    return buffer.getvalue()


def unpack(file: Path, out: Path) -> None:
    """Restore what `pack` wrote. Raises ArtifactError if the file is damaged; nothing half-unpacked is left behind."""
    staging = out / "unpacking"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with lzma.open(file) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            archive.extractall(staging, filter="data")
        if not (staging / "corpus" / "index.json").is_file():
            raise ArtifactError(f"{file} holds no corpus index: it was not written by `train pack`.")
        for name in ("tokenizer", "corpus"):
            shutil.rmtree(out / name, ignore_errors=True)
            os.replace(staging / name, out / name)
    except (lzma.LZMAError, tarfile.TarError, EOFError, OSError) as error:
        raise ArtifactError(f"{file} is not a readable packed corpus ({error}). Copy or pack it again.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def shard(file: Path, out: Path, piece_mib: float = 15.0) -> list[Path]:
    """Cut a file into pieces of at most `piece_mib`; returns the pieces, then the manifest `NAME.shards.json`."""
    if piece_mib <= 0:
        raise InputError(f"piece_mib {piece_mib} must be positive.")
    out.mkdir(parents=True, exist_ok=True)
    pieces: list[dict[str, Any]] = []
    whole = hashlib.sha256()
    with file.open("rb") as source:
        while (content := source.read(int(piece_mib * MIB))) or not pieces:
            name = f"{file.name}.{len(pieces):03d}"
            (out / name).write_bytes(content)
            whole.update(content)
            pieces.append({"name": name, "num_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
    manifest = out / f"{file.name}.shards.json"
    manifest.write_text(json.dumps({"name": file.name, "sha256": whole.hexdigest(), "pieces": pieces}, indent=1) + "\n")
    return [*(out / piece["name"] for piece in pieces), manifest]


def unshard(manifest: Path, out: Path) -> Path:
    """Join the pieces beside a manifest into `out`, a folder; returns the file.

    Raises ArtifactError naming the first piece that is missing or whose checksum differs; then no file is written.
    """
    try:
        record = json.loads(manifest.read_text())
        name, pieces, checksum = Path(record["name"]).name, record["pieces"], record["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{manifest} is not a shard manifest ({error!r}).") from error
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / f"{name}.tmp"
    whole = hashlib.sha256()
    try:
        with temporary.open("wb") as joined:
            for piece in pieces:
                content = _read_piece(manifest.parent / Path(piece["name"]).name, piece)
                whole.update(content)
                joined.write(content)
        if whole.hexdigest() != checksum:
            raise ArtifactError(
                f"{manifest}: the joined file's checksum differs. The manifest lost or reordered pieces."
            )
        os.replace(temporary, out / name)
    finally:
        temporary.unlink(missing_ok=True)
    return out / name


def _read_piece(path: Path, piece: dict[str, Any]) -> bytes:
    if not path.is_file():
        raise ArtifactError(f"Piece {path} is missing. Copy it again.")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != piece["sha256"]:
        raise ArtifactError(
            f"Piece {path} is damaged: {len(content)} bytes, {piece['num_bytes']} expected, checksum differs. "
            "Copy it again."
        )
    return content
