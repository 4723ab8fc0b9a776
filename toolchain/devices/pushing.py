"""Makes a folder on a device hold given files and nothing else; only what is missing or differs travels.

The folder is a plain tree, so that a runtime can open it as it is. There is no store of files by their hash beside it: Android
refuses hard links to the shell on many devices and has none on /sdcard, so a store would mean a second copy of everything.
What is there is told by the hashes that the device computes, never by dates or sizes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from shlex import quote

from pocketvlm.errors import EnvironmentFault, UsageError
from pocketvlm.toolchain.devices.adb import Adb, Answer
from pocketvlm.toolchain.devices.properties import free_bytes
from pocketvlm.toolchain.progress import Progress

PART = ".part"
# What a filesystem needs beside the files' bytes.
_MARGIN_BYTES = 4 << 20
_BASE_S = 30.0
# The slowest hashing that still counts as working.
_HASH_BYTES_PER_S = 20e6


@dataclass(frozen=True, slots=True)
class Item:
    """A file to be on the device, by its path in the folder."""

    name: str
    source: Path
    bytes: int
    sha256: str

    @classmethod
    def of(cls, name: str, source: Path) -> Item:
        """Read and hash a file."""
        with source.open("rb") as file:
            return cls(name, source, source.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True, slots=True)
class PushReport:
    """What a push did.

    Attributes:
        files_removed: what an older bundle left.
        seconds: all of it, comparing included.
        mb_per_s: millions of bytes per second while files travelled; None when nothing did.
    """

    device: str
    directory: str
    files_sent: int
    files_kept: int
    files_removed: int
    bytes_sent: int
    bytes_kept: int
    seconds: float
    mb_per_s: float | None


def check_directory(directory: str) -> str:
    """A path on a device, without closing slashes.

    Raises:
        UsageError: it is not absolute, is the root, or has parts or characters that no path of ours has.
    """
    path = PurePosixPath(directory)
    if not directory.isprintable() or not path.is_absolute() or ".." in path.parts or len(path.parts) < 2:
        raise UsageError(
            f"{directory!r} is no folder on a device", "give an absolute path, such as /data/local/tmp/pocketvlm/demo"
        )
    return "/" + "/".join(path.parts[1:])


class Folder:
    """A folder on a device.

    Args:
        path: as `check_directory` gives it.
    """

    def __init__(self, adb: Adb, path: str) -> None:
        self.adb = adb
        self.path = path

    def make(self) -> None:
        """Make it, and all above it.

        Raises:
            EnvironmentFault: something else is in its place, or the device does not let us.
        """
        done = self.adb.shell(f"mkdir -p {quote(self.path)} && cd {quote(self.path)} && [ -w . ]", "a folder to be made")
        if done.code:
            self.adb.refused(done.said if done.err.strip() else "Permission denied", self.path)

    def files(self) -> dict[str, int]:
        """Size of everything in it that is no folder, by its path in it."""
        listed = self.run("find . ! -type d -print0", "its files")
        names = [name.removeprefix("./") for name in listed.raw.decode(errors="surrogateescape").split("\0")[:-1]]
        if not names:
            return {}
        told = self.run("xargs -0 stat -c %s", "the sizes of its files", stdin=_joined(names)).out.split()
        if len(told) != len(names) or not all(size.isdigit() for size in told):
            raise EnvironmentFault(f"{self}: cannot list its files: {told[:3]}", "is the device's system older than Android 8?")
        return {name: int(size) for name, size in zip(names, told, strict=True)}

    def hashes(self, sizes: dict[str, int]) -> dict[str, str]:
        """sha256 of regular files in it, whose sizes are given."""
        if not sizes:
            return {}
        # A link or a special file has no hash, so it is replaced.
        script = 'xargs -0 sh -c \'for f; do [ -f "$f" ] && [ ! -L "$f" ] && sha256sum "$f"; done; true\' sh'
        limit = _BASE_S + sum(sizes.values()) / _HASH_BYTES_PER_S
        told = self.run(script, "its files' hashes", stdin=_joined(sizes), limit=limit).out
        rows = [line.split(maxsplit=1) for line in told.splitlines()]
        return {row[1].strip().removeprefix("./"): row[0] for row in rows if len(row) == 2}

    def remove(self, names: Iterable[str]) -> None:
        """Delete files, and all folders that are empty then."""
        if joined := _joined(names):
            # A name may be that of a file that has gone already.
            self.run("xargs -0 rm -f --", "files to be removed", stdin=joined)
        self.run("find . -depth -type d ! -name . -exec rmdir {} + 2>/dev/null; true", "empty folders to be removed")

    def send(self, item: Item, arrived: Callable[[int], None]) -> None:
        """Copy a file beside its place, compare it there, and rename it.

        Args:
            arrived: told how many more bytes are on the device.

        Raises:
            EnvironmentFault: it does not fit, the device has gone, or what arrived is not what was sent.
        """
        part = f"{self.path}/{item.name}{PART}"
        told = 0

        def tell(count: int) -> None:
            nonlocal told
            told += count
            arrived(count)

        try:
            self.adb.push(item.source, part, tell)
            self._put(item)
        except BaseException:
            self._forget(part)
            raise
        arrived(item.bytes - told)

    def _put(self, item: Item) -> None:
        part, place = quote(f"./{item.name}{PART}"), quote(f"./{item.name}")
        script = f'[ "$(wc -c < {part})" -eq {item.bytes} ] && set -- $(sha256sum {part}) && [ "$1" = {item.sha256} ] || exit 9'
        limit = _BASE_S + item.bytes / _HASH_BYTES_PER_S
        done = self.run(f"{script}; mv -f {part} {place}", f"{item.name} to be compared", limit=limit, refuse=False)
        if done.code == 9:
            raise EnvironmentFault(
                f"{self}/{item.name}: what arrived is not what was sent",
                "run the same again; if it stays so, the storage is bad",
            )
        if done.code:
            self.adb.refused(done.said, f"{self.path}/{item.name}")

    def _forget(self, part: str) -> None:
        try:
            self.adb.shell(f"rm -f {quote(part)}", "a half file to be removed")
        except EnvironmentFault:
            # The device has gone. The next push removes it.
            return

    def run(self, script: str, what: str, *, stdin: bytes = b"", limit: float = _BASE_S, refuse: bool = True) -> Answer:
        """Run a script in the folder.

        Args:
            refuse: whether a script that fails is an error.

        Raises:
            EnvironmentFault: it failed, or gave no answer in time.
        """
        done = self.adb.shell(f"cd {quote(self.path)} || exit\n{script}", what, stdin=stdin, limit=limit)
        if refuse and done.code:
            self.adb.refused(done.said, self.path)
        return done

    def __str__(self) -> str:
        return f"{self.adb.serial}:{self.path}"


@dataclass(frozen=True, slots=True)
class Difference:
    """What a folder on a device lacks, and what it has too much.

    Attributes:
        missing: not there, or other than wanted.
        stale: size of each file that is there and other than wanted.
        surplus: size of each file that nobody wants.
    """

    missing: tuple[Item, ...]
    kept: tuple[Item, ...]
    stale: dict[str, int]
    surplus: dict[str, int]

    @property
    def empty(self) -> bool:
        return not self.missing and not self.surplus


def compare(folder: Folder, wanted: Sequence[Item], parked: str = "") -> Difference:
    """Ask a folder that is there for what it holds.

    Args:
        parked: a name that makes no difference.

    Raises:
        EnvironmentFault: the device has gone, or gives no answer.
    """
    found = {name: size for name, size in folder.files().items() if name != parked}
    like = {item.name: item.bytes for item in wanted if found.get(item.name) == item.bytes}
    hashes = folder.hashes(like)
    kept = tuple(item for item in wanted if hashes.get(item.name) == item.sha256)
    missing = tuple(item for item in wanted if item not in kept)
    names = {item.name for item in wanted}
    return Difference(
        missing=missing,
        kept=kept,
        stale={item.name: found[item.name] for item in missing if item.name in found},
        surplus={name: size for name, size in found.items() if name not in names},
    )


def check_space(folder: Folder, difference: Difference) -> None:
    """Refuse to begin with what will not fit.

    Raises:
        EnvironmentFault: naming both sizes.
    """
    free = free_bytes(folder.adb, folder.path)
    needed = sum(item.bytes for item in difference.missing) + _MARGIN_BYTES
    available = None if free is None else free + sum((*difference.stale.values(), *difference.surplus.values()))
    if available is not None and difference.missing and needed > available:
        raise EnvironmentFault(
            f"{folder}: {needed / 1e6:,.1f} MB are needed and {available / 1e6:,.1f} MB are free",
            "remove something from the device, or choose another folder with --to",
        )


def apply(folder: Folder, difference: Difference, progress: Progress) -> float:
    """Remove what is too much and send what is missing; seconds that the sending took.

    Raises:
        EnvironmentFault: see `Folder.send`. What has arrived until then stays and is not sent again.
    """
    if difference.empty:
        return 0.0
    folder.remove([*difference.surplus, *difference.stale])
    if not difference.missing:
        return 0.0
    total = sum(item.bytes for item in difference.missing)
    count = len(difference.missing) + len(difference.kept)
    name = f"push {len(difference.missing)} of {count} files, {total / 1e6:,.1f} MB, to {folder.adb.serial}"
    progress.stage(name, total, "bytes")
    start = time.monotonic()
    parents = sorted({str(PurePosixPath(item.name).parent) for item in difference.missing} - {"."})
    if parents:
        folder.run("xargs -0 mkdir -p --", "folders to be made", stdin=_joined(parents))
    for item in difference.missing:
        folder.send(item, progress.advance)
    return time.monotonic() - start


def push_files(folder: Folder, wanted: Sequence[Item], progress: Progress) -> Difference:
    """Make a folder of ours hold these files and nothing else.

    Raises:
        EnvironmentFault: it does not fit, the device has gone, or its folder is not writable.
    """
    folder.make()
    difference = compare(folder, wanted)
    check_space(folder, difference)
    apply(folder, difference, progress)
    return difference


def _joined(names: Iterable[str]) -> bytes:
    return b"".join(f"./{name}\0".encode(errors="surrogateescape") for name in names)
