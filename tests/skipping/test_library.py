"""Skip sets by name."""

from __future__ import annotations

from pathlib import Path

import pytest

import slipstream
from families import build
from slipstream.errors import InputError, SkipSetError
from slipstream.files.cache_folder import CACHE_VARIABLE, cache_folder
from slipstream.methods.registry import build_drafter
from slipstream.skipping import library
from slipstream.skipping.skip_set import SkipSet
from slipstream.target.target import Target


@pytest.fixture
def target() -> Target:
    return Target(build("llama", num_hidden_layers=4))


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "shipped"
    folder.mkdir()
    monkeypatch.setattr(library, "shipped_folders", lambda: [folder])
    return folder


def found(target: Target, *attention: int) -> SkipSet:
    return SkipSet(num_layers=4, attention=attention, mlp=(2,), target=target.hash)


def used(target: Target, skip_set: object) -> tuple[int, ...]:
    return build_drafter("layer-skip", target, {"skip_set": skip_set}).skip_set.attention


def test_a_kept_set_is_found_by_its_name_and_goes_before_a_shipped_one(target: Target, shipped: Path) -> None:
    found(target, 1).save(shipped / "code.json")
    assert used(target, "code") == (1,)
    path = library.keep(found(target, 2), "code")
    assert path.name == "code.json"
    assert path.parent.name == target.hash
    assert used(target, "code") == (2,)
    assert library.names(target.hash) == ["code"]


def test_load_takes_a_name(target: Target, shipped: Path) -> None:
    library.keep(found(target, 1, 2), "summarisation")
    model = slipstream.load(target.model, "layer-skip", skip_set="summarization")
    assert model.drafter.skip_set.attention == (1, 2)


def test_the_set_named_default_is_taken_where_none_is_asked_for(target: Target, shipped: Path) -> None:
    built_in = used(target, None)
    assert built_in != (1, 2)
    library.keep(found(target, 1, 2), "default")
    assert used(target, None) == (1, 2)


def test_a_shipped_set_of_another_target_is_not_there(target: Target, shipped: Path) -> None:
    SkipSet(num_layers=4, attention=(1, 2), mlp=(), target="another").save(shipped / "default.json")
    assert library.find_default(target.hash) is None
    with pytest.raises(SkipSetError, match=r"no skip set 'default' for target .*there is none yet"):
        library.find("default", target.hash)


def test_an_unknown_name_lists_what_there_is(target: Target, shipped: Path) -> None:
    library.keep(found(target, 1), "code")
    library.keep(found(target, 1), "chat")
    with pytest.raises(SkipSetError, match=r"no skip set 'cod' .*there are chat, code.*skip search .* --task cod"):
        used(target, "cod")


def test_files_are_files(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found(target, 2).save(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert used(target, "mine") == (2,)
    assert not library.is_name("sets/code")
    assert not library.is_name("code.json")
    assert library.is_name("code")


@pytest.mark.parametrize("name", ["a/b", "", "x.json", "adaptive", "..", "two words"])
def test_names_that_no_set_can_have_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="a skip set cannot be called"):
        library.check_name(name)


def test_the_cache_folder_follows_the_environment(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == cache
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "slipstream"
