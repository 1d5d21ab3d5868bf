"""A record's command names no folder of the machine it ran on."""

from __future__ import annotations

from pathlib import Path

import pytest

from slipstream.records.machine import shown_command


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("-d", "-d"),
        ("eagle2:total=60", "eagle2:total=60"),
        ("/home/somebody/eval", ".../eval"),
        ("eagle2=/home/somebody/heads/one", "eagle2=.../one"),
        ("mine=xsum=/home/somebody/questions.jsonl", "mine=xsum=.../questions.jsonl"),
        ("{here}/heads/one", "heads/one"),
        ("eagle2={here}/heads/one", "eagle2=heads/one"),
    ],
)
def test_absolute_paths_are_shortened(
    argument: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = argument.replace("{here}", str(tmp_path))
    assert shown_command(["/usr/bin/slipstream", "bench", given]) == f"slipstream bench {shown}"
