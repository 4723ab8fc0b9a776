"""Android archives: `classes.jar` and native libraries below `jni/`. They come from elsewhere, so nothing in one is trusted."""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

from apk.faults import DamagedError

_LIBRARY = re.compile(r"jni/([a-z0-9_-]+)/(lib[A-Za-z0-9_.+-]+\.so)")
_MAX_BYTES = 1 << 30
_MAX_ENTRIES = 20_000
_MAX_RATIO = 200


def unpack(archive: Path, abis: Sequence[str], target: Path) -> list[Path]:
    """Write `classes.jar` and `lib/<abi>/*.so` of an archive below a folder; returns what was written.

    Only names of these forms are written, so that no name leads out of the folder.

    Raises:
        DamagedError: it is no archive, an entry stands twice, would be unreasonably large or does not have its checksum, or
            there are no libraries for one of the ABIs.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            return _unpack(opened, abis, target)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise DamagedError(f"{archive}: no archive, or damaged: {error}") from error
    except DamagedError as error:
        raise DamagedError(f"{archive}: {error}") from error


def _unpack(archive: zipfile.ZipFile, abis: Sequence[str], target: Path) -> list[Path]:
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if len(entries) > _MAX_ENTRIES or len(set(names)) != len(names):
        raise DamagedError("too many entries, or one stands there twice")
    wanted: dict[str, Path] = {}
    if "classes.jar" in names:
        wanted["classes.jar"] = target / "classes.jar"
    for name in names:
        if (found := _LIBRARY.fullmatch(name)) and found[1] in abis:
            wanted[name] = target / "lib" / found[1] / found[2]
    for abi in abis:
        if not any(name.startswith(f"jni/{abi}/") for name in wanted):
            raise DamagedError(f"no library for {abi} is in it")
    if sum(archive.getinfo(name).file_size for name in wanted) > _MAX_BYTES:
        raise DamagedError(f"its content would be larger than {_MAX_BYTES >> 20} MiB")
    for name, path in wanted.items():
        entry = archive.getinfo(name)
        if entry.file_size > _MAX_RATIO * max(entry.compress_size, 1 << 16):
            raise DamagedError(f"{name} would be {entry.file_size} bytes from {entry.compress_size}")
        path.parent.mkdir(parents=True, exist_ok=True)
        # zipfile reads no more than the size that is given here, and compares the checksum at the end.
        with archive.open(entry) as source, path.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
    return list(wanted.values())
