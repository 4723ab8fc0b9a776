"""Unpack `classes.jar` and native libraries of Android archives: `python3 unpack_aar.py TARGET ABI[,ABI...] ARCHIVE...`.

Each goes to a folder TARGET/<name of the archive>.
"""

from __future__ import annotations

import sys
from pathlib import Path

from apk.aar import unpack
from apk.faults import DamagedError


def main(target: Path, abis: list[str], archives: list[Path]) -> int:
    """Unpack all; returns the exit code."""
    try:
        for archive in archives:
            unpack(archive, abis, target / archive.stem)
    except (DamagedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2].split(","), [Path(name) for name in sys.argv[3:]]))
