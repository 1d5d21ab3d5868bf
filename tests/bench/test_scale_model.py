"""docs/scale.md quotes what benchmarks/scale_model.py computes, and that follows the formulas of the page."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module("scale_model")


def test_the_page_quotes_the_script(script, tmp_path, capsys) -> None:
    assert script.main(["--check"]) == 0, capsys.readouterr().err
    page = tmp_path / "scale.md"
    page.write_text(script.PAGE.read_text(encoding="utf-8").replace("3.35 TB/s", "3.36 TB/s"), encoding="utf-8")
    assert script.main(["--check", "--page", str(page)]) == 1
    assert "run: python benchmarks/scale_model.py" in capsys.readouterr().err
    assert script.main(["--page", str(page)]) == 0
    assert page.read_bytes() == script.PAGE.read_bytes()


def test_a_pass_follows_the_formulas(script) -> None:
    one = script.Setup(script.B70, script.H100, 4)
    weights, of_token, context = 2 * 70.55e9, 4 * 80 * 8 * 128, 4096
    assert one.memory_s() == pytest.approx((weights + context * of_token) / (4 * 3.35e12))
    assert one.arithmetic_s(61) == pytest.approx(61 * (weights + 4 * 80 * 64 * 128 * context) / (4 * 989e12))
    assert one.exchange_s(61) == pytest.approx(160 * (10e-6 + 2 * 3 / 4 * 61 * 8192 * 2 / 450e9))
    assert one.pass_s(61) == one.memory_s() + one.exchange_s(61)
    assert one.pass_s(4000) == one.arithmetic_s(4000) + one.exchange_s(4000), "many rows are bound by arithmetic"
    assert one.drafted(3) == pytest.approx(3 / one.cycle_s())


def test_layers_after_each_other_add_memory_and_no_speed(script) -> None:
    four, split = (script.Setup(script.B70, script.H100, 4, split=split) for split in (False, True))
    assert four.free_gb() == split.free_gb() == pytest.approx(320 - 141.1)
    assert four.memory_s() == 4 * split.memory_s()
    assert four.exchange_s(61) == 0


def test_drafting_breaks_even_where_it_says(script) -> None:
    for one in script.SETUPS:
        assert one.drafted(script.even_tau(one)) == pytest.approx(one.plain())
