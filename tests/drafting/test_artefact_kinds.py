"""The artefact of one method given to another is refused by name."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

import slipstream
from methods.eagle3.published import PUBLISHED
from slipstream.drafting.artefact_files import KINDS, artefact_kind
from slipstream.errors import ArtifactError
from slipstream.methods.registry import METHODS

DEMO = Path(slipstream.__file__).parent / "demo" / "tiny"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One artefact of each kind for the model that ships: those that ship, and one as it is published."""
    published = PUBLISHED["SpecForge"].write(tmp_path_factory.mktemp("eagle3"))
    return {kind: DEMO / kind if (DEMO / kind).is_dir() else published for kind in KINDS}


PAIRS = [(method, kind) for method, kind in itertools.product(METHODS, KINDS) if METHODS[method].artefact is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_every_artefact_is_told_by_its_files(kind: str, folders: dict[str, Path]) -> None:
    assert artefact_kind(folders[kind]) == kind


@pytest.mark.parametrize(("method", "kind"), [pair for pair in PAIRS if METHODS[pair[0]].artefact != pair[1]])
def test_it_is_refused_by_name(method: str, kind: str, folders: dict[str, Path]) -> None:
    with pytest.raises(ArtifactError, match=f"holds {KINDS[kind][0]}, not .*; use it with method '{KINDS[kind][1]}'"):
        slipstream.load("tiny", method, draft=folders[kind], dtype="float32")


def test_a_folder_without_a_config_tells_nothing(tmp_path: Path) -> None:
    assert artefact_kind(tmp_path) is None
    (tmp_path / "config.json").write_text("[]")
    assert artefact_kind(tmp_path) is None
