"""Gives memory back to the system where Linux and Android allow it; elsewhere nothing happens."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from collections.abc import Iterator
from pathlib import Path

_MADV_DONTNEED = 4
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ [1-9]\d* +(/.*)")
# A page of a private mapping that was written to is a copy in anonymous memory, or has been swapped out.
_CHANGED = re.compile(r"(?:Anonymous|Swap): +[1-9]")


def return_freed_memory() -> None:
    """Collect garbage, and have the C library return the pages that it keeps for later (glibc alone has that call)."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def drop_mapped_pages(folder: Path) -> int:
    """Let go of the pages of files below `folder` that are mapped into this process; returns the mapped bytes.

    ONNX Runtime keeps a graph's weights mapped after it has packed them into buffers of its own, scales and tied tables
    among them. What is still read comes back from the page cache by itself. A mapping with pages that were written to
    stays as it is.
    """
    if sys.platform != "linux":
        return 0
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    dropped = 0
    for start, length in list(_unchanged_mappings(folder.resolve())):
        if advise(start, length, _MADV_DONTNEED) == 0:
            dropped += length
    return dropped


def _unchanged_mappings(folder: Path) -> Iterator[tuple[int, int]]:
    """Address and bytes of each mapping of a file below `folder` whose pages all belong to the file."""
    try:
        lines = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    current: tuple[int, int] | None = None
    for line in lines:
        if line[0] in "0123456789abcdef":
            if current is not None:
                yield current
            found = _MAPPING.match(line)
            inside = found is not None and folder in Path(found[3]).parents
            current = (int(found[1], 16), int(found[2], 16) - int(found[1], 16)) if found and inside else None
        elif current is not None and _CHANGED.match(line):
            current = None
    if current is not None:
        yield current
