"""Where the entries of an APK lie, and what a native library asks of the memory's pages.

A library is mapped from the APK itself, so that it must be stored as it is, from the beginning of a page on, and so must its
segments be. Pages have 4 or 16 KB: https://developer.android.com/guide/practices/page-sizes.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

from apk.faults import DamagedError

PAGE = 16384
_WORD = 4
# The extra field that Android's own tools pad with.
_PADDING = 0xD935
_DATE = (1980, 1, 1, 0, 0, 0)
_LOAD = 1
_MACHINES = {"arm64-v8a": 183, "x86_64": 62}
# Qualcomm's libraries for the NPU's own processor lie among those for the phone's, which never loads them.
_HEXAGON = 164


def is_library(name: str) -> bool:
    """Whether an entry is a native library."""
    return name.startswith("lib/") and name.endswith(".so")


def data_offset(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> int:
    """Where the data of an entry begins in the file."""
    assert archive.fp is not None
    archive.fp.seek(entry.header_offset)
    header = archive.fp.read(30)
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise DamagedError(f"{entry.filename}: its local header is damaged")
    name, extra = struct.unpack_from("<HH", header, 26)
    return int(entry.header_offset) + 30 + int(name) + int(extra)


def align(source: Path, target: Path) -> None:
    """Copy an APK so that each stored entry is aligned: libraries to 16 KB, others to 4 bytes. Dates are left out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            copy = zipfile.ZipInfo(entry.filename, _DATE)
            copy.compress_type = entry.compress_type
            copy.external_attr = 0o644 << 16
            if entry.compress_type == zipfile.ZIP_STORED:
                copy.extra = _padding(new, entry.filename)
            new.writestr(copy, old.read(entry))


def _padding(archive: zipfile.ZipFile, name: str) -> bytes:
    unit = PAGE if is_library(name) else _WORD
    assert archive.fp is not None
    missing = -(archive.fp.tell() + 30 + len(name.encode())) % unit
    if missing == 0:
        return b""
    while missing < 6:
        missing += unit
    return struct.pack("<HHH", _PADDING, missing - 4, unit) + bytes(missing - 6)


def alignment_faults(archive: zipfile.ZipFile) -> list[str]:
    """What is wrong with where entries lie, and with the native libraries' segments."""
    faults = []
    for entry in archive.infolist():
        if is_library(entry.filename):
            faults += _library_faults(archive, entry)
        elif entry.filename == "resources.arsc" and not _is_word_aligned(archive, entry):
            faults.append("resources.arsc is compressed, or not aligned to 4 bytes: Android 11 and later refuse it")
    return faults


def _is_word_aligned(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    return entry.compress_type == zipfile.ZIP_STORED and data_offset(archive, entry) % _WORD == 0


def _library_faults(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> list[str]:
    name = entry.filename
    faults = []
    if entry.compress_type != zipfile.ZIP_STORED:
        faults.append(f"{name} is compressed, so it cannot be mapped from the APK")
    elif (rest := data_offset(archive, entry) % PAGE) != 0:
        faults.append(f"{name} begins {rest} bytes behind a page of {PAGE}")
    content = archive.read(entry)
    if name.endswith("Skel.so") and content[18:20] == struct.pack("<H", _HEXAGON):
        return faults
    try:
        smallest = smallest_segment_alignment(content, name.split("/")[1])
    except DamagedError as error:
        return [*faults, f"{name}: {error}"]
    if smallest < PAGE:
        faults.append(f"{name} has a segment aligned to {smallest}, less than a page of {PAGE}")
    return faults


def smallest_segment_alignment(elf: bytes, abi: str) -> int:
    """The least alignment of the loaded segments of a library.

    Raises:
        DamagedError: it is no 64-bit library for this ABI.
    """
    try:
        machine, _, _, headers, _, _, _, size, count = struct.unpack_from("<HIQQQIHHH", elf, 18)
        if elf[:6] != b"\x7fELF\x02\x01":
            raise DamagedError("no 64-bit ELF library")
        if machine != _MACHINES.get(abi):
            raise DamagedError(f"a library for machine {machine}, which is not {abi}'s")
        segments = [struct.unpack_from("<IIQQQQQQ", elf, headers + size * index) for index in range(count)]
    except struct.error as error:
        raise DamagedError(f"no ELF library: {error}") from error
    loaded = [int(segment[7]) for segment in segments if segment[0] == _LOAD]
    if not loaded:
        raise DamagedError("a library without a loaded segment")
    return min(loaded)
