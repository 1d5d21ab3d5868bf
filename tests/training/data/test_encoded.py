"""The prepared corpus: made once, remade when the data changes, and never mixing the splits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from slipstream.errors import ArtifactError
from slipstream.training.data.corpus import PROMPT_BIT, Source, is_held_out, read_examples
from slipstream.training.data.encoded import held_out_rows, load, prepare


@pytest.fixture(scope="module")
def prepared(data: Path, mix: dict[str, Source], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    prepare(data, out, 300, 64, mix)
    return out


def test_held_out_text_never_reaches_the_training_split(prepared: Path, data: Path) -> None:
    corpus = load(prepared)
    for name in corpus.mix:
        held = [e for e in read_examples(data / f"{name}.jsonl") if is_held_out(e)]
        texts = {"".join(content for _, content in e.segments) for e in held}
        train = corpus.train[name]
        decoded = corpus.tokenizer.decode_batch([(train[i] & (PROMPT_BIT - 1)).tolist() for i in range(len(train))])
        assert not texts & set(decoded)
        assert len(corpus.held_out[name]) == len(held)
    assert sum(len(documents) for documents in corpus.held_out.values()) > 0


def test_work_is_reused_until_the_data_changes(
    prepared: Path, data: Path, mix: dict[str, Source], tmp_path: Path
) -> None:
    index = prepared / "corpus" / "index.json"
    before = index.stat().st_mtime_ns
    assert prepare(data, prepared, 300, 64, mix).key == load(prepared).key
    assert index.stat().st_mtime_ns == before
    changed, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(data, changed)
    shutil.copytree(prepared, out)
    with (changed / "book.jsonl").open("a") as book:
        book.write('{"text": "one more"}\n')
    assert prepare(changed, out, 300, 64, mix).key != load(prepared).key


def test_interrupted_preparation_is_reported(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "out")
    (tmp_path / "out" / "corpus" / "index.json").unlink()
    with pytest.raises(ArtifactError, match=r"index\.json"):
        load(tmp_path / "out")


def test_damaged_documents_are_reported(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "out")
    (tmp_path / "out" / "corpus" / "book.train.npz").write_bytes(b"PK broken")
    with pytest.raises(ArtifactError, match=r"book\.train\.npz"):
        load(tmp_path / "out")


def test_held_out_rows_are_the_same_every_time(prepared: Path) -> None:
    first, second = (held_out_rows(load(prepared), length=16, num_tokens=64) for _ in range(2))
    assert first.keys() == second.keys()
    assert all((first[task] == second[task]).all() for task in first)
    assert all(rows.shape[1] <= 17 for rows in first.values())
