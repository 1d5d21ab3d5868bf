"""Every script of `benchmarks/` still finds what it imports: nothing else runs most of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
NAMES = sorted(path.stem for path in SCRIPTS.glob("*.py"))


@pytest.mark.skipif(not NAMES, reason="the benchmarks are in a checkout only")
def test_scripts_can_be_imported() -> None:
    code = "\n".join(f"import {name}; print({name}.__file__)" for name in NAMES)
    done = subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(SCRIPTS / f"{name}.py") for name in NAMES]
