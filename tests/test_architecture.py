"""The worked example of docs/architecture.md is a drafter that works."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import PreTrainedModel

import slipstream
from slipstream.errors import InputError
from slipstream.methods.registry import METHODS

TEXT = Path(__file__).resolve().parents[1] / "docs" / "architecture.md"
PROMPT = [5, 6, 7, 5, 6, 7, 5, 6]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) < 60
    module = ModuleType("pair_memory")
    monkeypatch.setitem(sys.modules, "pair_memory", module)  # where dataclasses look up their annotations
    exec(compile(code, str(TEXT), "exec"), module.__dict__)
    monkeypatch.setitem(METHODS, "pair-memory", module.METHOD)


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_it_drafts_and_changes_nothing(temperature: float, family_model: Callable[[str], PreTrainedModel]) -> None:
    model = family_model("llama")
    how: dict[str, Any] = {"max_new_tokens": 40, "temperature": temperature, "seed": 3}
    plain = slipstream.load(model, "plain").generate(PROMPT, **how)
    drafted = slipstream.load(model, "pair-memory").generate(PROMPT, **how)
    assert drafted.token_ids == plain.token_ids
    assert drafted.stats.num_drafted > 0


@pytest.mark.usefixtures("example")
def test_its_settings_are_checked_and_its_options_known(family_model: Callable[[str], PreTrainedModel]) -> None:
    with pytest.raises(InputError, match="at least 1"):
        slipstream.load(family_model("llama"), "pair-memory", length=0)
    with pytest.raises(InputError, match="no option 'width'"):
        slipstream.load(family_model("llama"), "pair-memory", width=2)
