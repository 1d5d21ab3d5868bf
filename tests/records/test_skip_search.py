"""What the docs say of skipping sub-layers of the real model is what the search's record says."""

from __future__ import annotations

import json

from shipped_records import RECORDS


def test_the_page_says_what_the_search_found() -> None:
    found = json.loads((RECORDS / "skip-search-smollm2-bf16.json").read_text(encoding="utf-8"))["provenance"]
    against = found["against_plain"]
    page = " ".join((RECORDS.parents[1] / "docs" / "theory.md").read_text(encoding="utf-8").split())
    assert f"the best of {found['trials']} sets that `slipstream skip search` tried" in page
    measured = f"{against['speedup']:.2f} ({against['low']:.2f} to {against['high']:.2f}, {against['answers']} answers"
    assert f"bounded at {against['bound']:.2f} of plain decoding by its own costs and measured at {measured}" in page
    assert against["high"] < 1, "no set pays, so none ships"
    assert not list((RECORDS.parents[1] / "src" / "slipstream" / "demo" / "smollm2").glob("skip_sets/*"))
