"""How a full disk shows."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

# What the system says: nothing is left, the user's share is used up, or files may not grow so large.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Compilers write in pieces, and what is left when the next one does not fit is less than that.
_NEARLY = 1 << 20


def full_error(words: str) -> int | None:
    """The error number of a full disk that somebody's words tell of."""
    return next((number for number in FULL if os.strerror(number).casefold() in words.casefold()), None)


def is_nearly_full(folder: Path) -> bool:
    """Whether hardly anything fits on the disk any more."""
    return shutil.disk_usage(folder).free < _NEARLY
