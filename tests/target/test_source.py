"""Names of models: the two that are known, folders, hub ids; what can be none of them fails without the network."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from slipstream.errors import InputError
from slipstream.files.packaged import shipped_for_any
from slipstream.target import hub, source
from slipstream.target.hub import is_offline
from slipstream.target.loading import load_model
from slipstream.target.source import Source, find_source


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever touches the network fails the test."""
    monkeypatch.setattr(source, "is_offline", lambda: pytest.fail("the network was touched"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


@pytest.mark.usefixtures("no_network")
def test_tiny_is_the_shipped_one():
    assert (find_source("tiny").place / "model.safetensors").is_file()
    assert {folder.parent.name for folder in shipped_for_any("eagle")} >= {"tiny"}


@pytest.mark.usefixtures("no_network")
def test_demo_is_refused_with_both_names():
    with pytest.raises(InputError, match=r"no model is called 'demo'.*'tiny'.*'smollm2'"):
        load_model("demo", dtype=None, device="cpu", attention=None)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["a b", "a//b", "-x", "own/name.git", "a/b/c", "./tinyy", "/nowhere", "tiny!"])
def test_what_can_be_no_model_fails_without_the_network(name):
    with pytest.raises(InputError, match="'tiny' or 'smollm2'"):
        find_source(name)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "meant"),
    [("tinyy", "tiny"), ("smolm2", "smollm2"), ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2"), ("no/such", None)],
)
def test_an_unknown_name_fails_at_once_while_offline(name, meant):
    with pytest.raises(InputError) as caught:
        load_model(name, dtype=None, device="cpu", attention=None)
    line = str(caught.value)
    assert "the hub cannot be reached" in line
    assert (f"Did you mean {meant!r}?" in line) if meant else ("Did you mean" not in line)


def test_a_hub_that_takes_a_connection_is_asked(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "getproxies", dict)
        assert not is_offline()
        assert find_source("some/model") == Source("some/model", "some/model", offline=False)
    assert is_offline()


@pytest.mark.parametrize(
    ("proxies", "first"),
    [
        ({}, ("hub.example", 443)),
        ({"https": "http://proxy.example:3128"}, ("proxy.example", 3128)),
        ({"all": "proxy.example:3128"}, ("proxy.example", 3128)),
        ({"http": "http://proxy.example:3128"}, ("hub.example", 443)),
    ],
)
def test_behind_a_proxy_the_proxy_is_what_must_answer(monkeypatch, proxies, first):
    monkeypatch.setattr(hub, "getproxies", lambda: proxies)
    monkeypatch.setattr(hub, "proxy_bypass", lambda host: False)
    assert hub._first_hop("https://hub.example") == first


def test_a_name_that_takes_long_to_look_up_counts_as_offline(monkeypatch):
    monkeypatch.setattr(hub, "PATIENCE_S", 0.05)
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    done = []

    def slow(*args: object, **kwargs: object) -> None:
        import time

        time.sleep(0.3)
        done.append(True)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", slow)
    assert is_offline()
    assert not done
