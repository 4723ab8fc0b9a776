"""Copy an APK so that native libraries begin at pages of 16 KB: `python3 align_apk.py SOURCE TARGET`.

Debian's zipalign knows pages of 4 KB only.
"""

from __future__ import annotations

import sys
from pathlib import Path

from apk.pages import align

if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    align(source, target)
