"""The README's table is what its record gives."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from report.record_factory import make_record

REPOSITORY = Path(__file__).parents[2]
MARKS = "# Title\n\n<!-- bench:begin -->\nold\n<!-- bench:end -->\n\nafter\n"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import readme_table

    yield readme_table
    sys.modules.pop("readme_table")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "r.json").write_text(json.dumps(make_record()), encoding="utf-8")
    (tmp_path / "README.md").write_text(MARKS, encoding="utf-8")
    return tmp_path


def asked(folder, *more):
    return [str(folder / "records" / "r.json"), "--readme", str(folder / "README.md"), *more]


def test_the_table_goes_between_the_marks_with_command_and_record(script, folder):
    assert script.main(asked(folder)) == 0
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# Title\n\n<!-- bench:begin -->\nModel demo")
    assert text.endswith("\n<!-- bench:end -->\n\nafter\n")
    assert "[the record](records/r.json)" in text
    assert "\n    slipstream bench run -m demo --threads 1\n" in text
    assert "| `eagle2` | 1.50x / 2.00 | 1.65x / 2.20 | 1.58x / 2.10 | 180.0 | 40 of 40 |" in text
    assert "| `hf-plain` | 0.50x / - | 0.55x / - | 0.53x / - | 60.0 | - |" in text  # at T=1 a peer samples by itself
    assert text.count("| method |") == 2


def test_check_passes_on_what_was_written_and_fails_on_anything_else(script, folder, capsys):
    assert script.main(asked(folder, "--check")) == 1
    assert "run: python benchmarks/readme_table.py" in capsys.readouterr().err
    assert (folder / "README.md").read_text(encoding="utf-8") == MARKS
    script.main(asked(folder))
    assert script.main(asked(folder, "--check")) == 0
    text = (folder / "README.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(text.replace("1.65x", "1.66x"), encoding="utf-8")
    assert script.main(asked(folder, "--check")) == 1


def test_a_readme_without_marks_is_refused(script, folder, capsys):
    for text in ("no marks", "<!-- bench:end --> <!-- bench:begin -->"):
        (folder / "README.md").write_text(text, encoding="utf-8")
        assert script.main(asked(folder)) == 2
        assert capsys.readouterr().err.count("\n") == 1
        assert (folder / "README.md").read_text(encoding="utf-8") == text


def test_a_brief_table_has_no_command(script, folder):
    assert script.main(asked(folder, "--brief")) == 0
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "[the record](records/r.json)" in text
    assert "**T = 0**" in text
    assert "\n    " not in text, "no block of code"
    assert script.main(asked(folder, "--brief", "--check")) == 0
    assert script.main(asked(folder, "--check")) == 1


@pytest.mark.parametrize(("page", "more"), [("README.md", ["--brief"]), ("docs/tiny-model.md", [])])
def test_this_repository_s_pages_are_what_their_records_give(page, more, script, monkeypatch, capsys):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    found = re.search(r"\[the record\]\(([^)]+)\)", text[text.index(script.BEGIN) :])
    monkeypatch.chdir(REPOSITORY)
    record = (REPOSITORY / page).parent / found[1]
    assert script.main([str(record), "--readme", page, "--check", *more]) == 0, capsys.readouterr().err
