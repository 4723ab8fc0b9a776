"""The index of a safetensors file, checked before anything of the file is believed.

Format: https://github.com/huggingface/safetensors#format: eight bytes with the little-endian size of a JSON header, the
header, then the tensors' bytes without gaps.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketvlm.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
_MAX_DIMENSIONS = 16
_DOWNLOAD_AGAIN = "the file is damaged or incomplete; download it again"
_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E5M2FNUZ", "F8_E4M3FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor is and what it looks like; `dtype` in the spelling of safetensors ("BF16")."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Tensors of the safetensors file `path`, by name.

    Raises:
        CheckpointError: the file cannot be read, is cut short, or its header is no header: not JSON, too long, with
            repeated names, unknown types, or ranges that overlap, leave gaps or end beyond the file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if len(start) < 8:
                raise _damaged(path, f"{size} bytes are too few for a header")
            (length,) = struct.unpack("<Q", start)
            if length > MAX_HEADER_BYTES or 8 + length > size:
                raise _damaged(path, f"a header of {length} bytes in a file of {size}")
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}", "check the file and its permissions") from error
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"the header is not valid JSON: {error}") from None
    if not isinstance(header, dict):
        raise _damaged(path, "the header is not a JSON object")
    header.pop("__metadata__", None)
    tensors, ranges = {}, []
    for name, entry in header.items():
        shape, dtype, begin, end = _read_entry(path, name, entry)
        tensors[name] = TensorInfo(path, dtype, shape)
        ranges.append((begin, end, name))
    expected = 0
    for begin, end, name in sorted(ranges):
        if begin != expected:
            place = "inside another tensor" if begin < expected else "behind a gap"
            raise _damaged(path, f"tensor {name!r} begins at byte {begin}, {place}")
        expected = end
    if 8 + length + expected != size:
        raise _damaged(path, f"{size} bytes, the header describes {8 + length + expected}")
    return tensors


def _read_entry(path: Path, name: str, entry: Any) -> tuple[tuple[int, ...], str, int, int]:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _damaged(path, f"tensor {name!r} has no dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _damaged(path, f"tensor {name!r} has the unknown type {dtype!r}")
    if not _counts(shape) or len(shape) > _MAX_DIMENSIONS or not _counts(offsets) or len(offsets) != 2:
        raise _damaged(path, f"tensor {name!r} has a malformed shape or data_offsets")
    begin, end = offsets
    if begin > end or (end - begin) * 8 != math.prod(shape) * _BITS[dtype]:
        raise _damaged(path, f"tensor {name!r} of type {dtype} and shape {shape} cannot lie in bytes {begin} to {end}")
    return tuple(shape), dtype, begin, end


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: damaged safetensors file: {what}", _DOWNLOAD_AGAIN)
