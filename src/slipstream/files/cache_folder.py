"""The user's cache folder, in which found skip sets and converted models are kept.

It is that of the environment variable SLIPSTREAM_CACHE, else `slipstream` in XDG_CACHE_HOME or ~/.cache (macOS:
~/Library/Caches, Windows: %LOCALAPPDATA%).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

CACHE_VARIABLE = "SLIPSTREAM_CACHE"


def cache_folder() -> Path:
    """Where this user's files are kept; it may not be there yet."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "slipstream"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "slipstream"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slipstream"
