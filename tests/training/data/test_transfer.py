"""Packing the corpus and sharding files: exact round trips, limits kept, damage reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slipstream.errors import ArtifactError, InputError
from slipstream.training.data.corpus import Source
from slipstream.training.data.encoded import Corpus, load, prepare
from slipstream.training.data.transfer import MIB, pack, shard, unshard


@pytest.fixture(scope="module")
def prepared(data: Path, mix: dict[str, Source], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    prepare(data, out, 300, 64, mix)
    return out


def same(a: Corpus, b: Corpus) -> bool:
    pairs = [(a.train, b.train), (a.held_out, b.held_out)]
    return all(
        (x[n].tokens.tolist(), x[n].offsets.tolist()) == (y[n].tokens.tolist(), y[n].offsets.tolist())
        for x, y in pairs
        for n in x
    )


def test_packed_corpus_prepares_the_same_elsewhere(prepared: Path, tmp_path: Path) -> None:
    size = pack(prepared, tmp_path / "corpus.tar.xz")
    assert size == (tmp_path / "corpus.tar.xz").stat().st_size
    there = prepare(tmp_path / "corpus.tar.xz", tmp_path / "there", 300, 64)
    here = load(prepared)
    assert same(here, there)
    assert (here.mix, here.key) == (there.mix, there.key)
    assert there.tokenizer.encode("red fish").ids == here.tokenizer.encode("red fish").ids


def test_sample_keeps_whole_documents_and_all_held_out(prepared: Path, tmp_path: Path) -> None:
    pack(prepared, tmp_path / "half.tar.xz", sample=0.5)
    here, there = load(prepared), prepare(tmp_path / "half.tar.xz", tmp_path / "there", 300, 64)
    for name, documents in here.train.items():
        assert len(there.train[name]) == round(len(documents) / 2)
        known = {tuple(documents[i]) for i in range(len(documents))}
        assert all(tuple(there.train[name][i]) in known for i in range(len(there.train[name])))
        assert len(there.held_out[name]) == len(here.held_out[name])
    assert there.key != here.key


def test_limit_is_kept_and_the_error_names_a_sample_that_fits(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"limit is 0\.01 MiB\. Try --sample 0\.\d"):
        pack(prepared, tmp_path / "corpus.tar.xz", limit_mib=0.01)
    assert list(tmp_path.iterdir()) == []


def test_damaged_pack_is_refused_and_leaves_nothing(prepared: Path, tmp_path: Path) -> None:
    file = tmp_path / "corpus.tar.xz"
    pack(prepared, file)
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(ArtifactError, match=r"corpus\.tar\.xz"):
        prepare(file, tmp_path / "there", 300, 64)
    assert not (tmp_path / "there" / "corpus").exists()


def test_nothing_prepared_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no prepared corpus"):
        pack(tmp_path, tmp_path / "corpus.tar.xz")


@pytest.mark.parametrize("size", [0, 1, 1000, 4096, 4097])
def test_shards_join_to_the_same_file(tmp_path: Path, size: int) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(i % 251 for i in range(size)))
    *pieces, manifest = shard(file, tmp_path / "pieces", piece_mib=1024 / MIB)
    assert len(pieces) == max(1, -(-size // 1024))
    assert all(piece.stat().st_size <= 1024 for piece in pieces)
    assert unshard(manifest, tmp_path / "joined").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_piece_is_named_and_nothing_is_written(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(3000))
    *pieces, manifest = shard(file, tmp_path / "pieces", piece_mib=1024 / MIB)
    if damage == "remove":
        pieces[1].unlink()
    else:
        pieces[1].write_bytes(b"\1" + bytes(1023) if damage == "flip" else bytes(1000))
    with pytest.raises(ArtifactError, match=r"weights\.bin\.001"):
        unshard(manifest, tmp_path / "joined")
    assert list((tmp_path / "joined").iterdir()) == []


def test_manifest_that_lost_a_piece_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(3000))
    manifest = shard(file, tmp_path / "pieces", piece_mib=1024 / MIB)[-1]
    record = json.loads(manifest.read_text())
    record["pieces"].pop()
    manifest.write_text(json.dumps(record))
    with pytest.raises(ArtifactError, match="checksum differs"):
        unshard(manifest, tmp_path / "joined")
