"""`slipstream` and `python -m slipstream`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    # Threads that spin while they wait for each other stall when another program wants their core: with one such
    # program on two cores the demo model ran a hundred times slower. Must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from slipstream.cli import run

    sys.exit(run())


if __name__ == "__main__":
    main()
