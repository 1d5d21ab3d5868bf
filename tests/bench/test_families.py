"""The sweep over model families: a sample of it, and how its record and table are made."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"
RECORD = SCRIPTS / "records" / "families.json"
TABLE = SCRIPTS.parent / "docs" / "families.md"

pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir(), reason="the benchmark scripts are not in this distribution")


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script; tests have a module of the same name."""
    monkeypatch.delitem(sys.modules, "families", raising=False)
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import families as script

    assert Path(script.__file__).parent == SCRIPTS
    yield script
    for name in ("tiny_models", "records", "ablations"):
        sys.modules.pop(name, None)


@pytest.mark.filterwarnings("ignore")  # of transformers' own model files
@pytest.mark.parametrize("name", ["qwen2", "gemma2", "rembert", "hrm_text", "llama4 (image-text)"])
def test_every_drafter_keeps_the_text_of_a_family(families, name):
    row = families.checked(name)
    assert (row["verdict"], row["reason"], row["generate"]) == ("accepted", None, "same")
    drafters = row["drafters"]
    assert set(drafters) == set(families.DRAFTERS)
    refused = {one for one, said in drafters.items() if not said.startswith("same, ")}
    # hrm_text has no list of as many layers as it says, to skip or to read hidden states between
    assert refused <= ({"layer-skip", "eagle3"} if name == "hrm_text" else {"layer-skip"})
    assert any(not said.startswith("same, 0 ") for said in drafters.values()), "some draft is kept"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "reason"),
    [("xlm", "cannot run a draft tree"), ("mamba", "recurrent state"), ("blip", "needs pixel_values")],
)
def test_a_refused_family_is_a_row_with_its_reason(families, name, reason):
    row = families.checked(name)
    assert row["verdict"] == "refused"
    assert reason in row["reason"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mllama", "a MllamaCrossAttentionDecoderLayer among the layers is not run"),
        ("gemma3n_text", "more than one each"),
    ],
)
def test_hidden_states_that_no_head_can_read_are_named(families, name, reason):
    said = families.checked(name)["drafters"]["eagle3"]
    assert said.startswith("refused: the model cannot be drafted for by heads")
    assert reason in said


@pytest.mark.filterwarnings("ignore")
def test_what_differs_is_found(families, monkeypatch):
    """A sweep that could not fail would prove nothing."""
    right = families.slipstream.Model.generate

    def generate(self: Any, *arguments: Any, **settings: Any) -> Any:
        output = right(self, *arguments, **settings)
        if self.method == "lookahead":
            output.token_ids[3] += 1
        return output

    monkeypatch.setattr("slipstream.Model.generate", generate)
    row = families.checked("llama")
    assert row["verdict"] == "differs"
    assert row["reason"] == "differs: lookahead, greedy, at token 3"


def test_a_crash_and_a_hang_are_rows(families, monkeypatch):
    monkeypatch.setattr(families, "checked", lambda name: os._exit(7))
    assert families.guarded("llama", 60) == {"verdict": "crashed", "reason": "the process ended with code 7"}
    monkeypatch.setattr(families, "checked", lambda name: torch.multiprocessing.Event().wait(60))
    assert families.guarded("llama", 1) == {"verdict": "crashed", "reason": "no answer within 1 s"}


def test_a_run_goes_on_where_it_stopped(families, monkeypatch, tmp_path):
    made: list[str] = []

    def row(name: str, patience_s: float) -> dict[str, Any]:
        made.append(name)
        return {"verdict": "not built", "reason": "a|b"}

    monkeypatch.setattr(families, "guarded", row)
    out, table = tmp_path / "record.json", tmp_path / "table.md"
    for only, again in ((["a", "b"], []), (["a", "b", "c"], ["b"])):
        monkeypatch.setattr(
            sys, "argv", ["families.py", "--out", str(out), "--table", str(table), "--only", *only, "--again", *again]
        )
        assert families.main() == 0
    assert made == ["a", "b", "b", "c"]
    record = json.loads(out.read_text(encoding="utf-8"))
    assert list(record["rows"]) == ["a", "b", "c"]
    assert "| a |  | a\\|b |" in table.read_text(encoding="utf-8")


def test_the_table_is_the_records(families):
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert TABLE.read_text(encoding="utf-8") == "\n".join(families.table(record)) + "\n"
    assert not [name for name, row in record["rows"].items() if row["verdict"] in ("differs", "traceback")]
