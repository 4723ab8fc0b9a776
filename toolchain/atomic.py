"""Putting a finished directory in the place of an older one, so that a crash at any moment leaves one of them whole."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import sys
from pathlib import Path
from types import TracebackType

from pocketvlm.errors import EnvironmentFault, UsageError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


class OutputLock:
    """Held by the one process that writes `output`: an advisory lock on `.<name>.lock` beside it.

    The system drops the lock when its process ends, however it ends; so whoever holds it knows that partial
    directories beside `output` are left over from dead processes. Process ids would not tell: they are used again.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._path = output.with_name(f".{output.name}.lock")
        self._handle = -1

    def __enter__(self) -> OutputLock:
        while True:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(handle)
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                raise EnvironmentFault(
                    f"{self._output}: another export is writing this bundle", "wait for it, or choose another output"
                ) from None
            # Another process may have removed the file between open and flock; then the lock is on nothing.
            try:
                if os.path.samestat(os.fstat(handle), self._path.stat()):
                    self._handle = handle
                    return self
            except FileNotFoundError:
                pass
            os.close(handle)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._handle)


def check_folders(output: Path) -> None:
    """Refuse a path below a file, where no folder can be made.

    Raises:
        UsageError: naming the file.
    """
    nearest = next((folder for folder in output.parents if folder.exists()), None)
    if nearest is not None and not nearest.is_dir():
        raise UsageError(f"{output}: {nearest} is a file, not a folder", "choose another output")


def partial_path(output: Path) -> Path:
    """Where this process builds what will become `output`: beside it, so on the same filesystem."""
    return output.with_name(f".{output.name}.partial-{os.getpid()}")


def recover(output: Path) -> None:
    """Finish or undo what a killed process left beside `output`. Call with the `OutputLock` held."""
    previous = _previous(output)
    if os.path.lexists(previous):
        if output.exists() or previous.is_symlink() or not previous.is_dir():
            _remove(previous)
        else:
            previous.rename(output)
    prefix = f".{output.name}.partial-"
    for entry in output.parent.iterdir():
        if entry.name.startswith(prefix) and entry.name.removeprefix(prefix).isdigit():
            _remove(entry)


def _remove(path: Path) -> None:
    """Delete a directory, or whatever else has its name; never what a link points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def replace_directory(partial: Path, output: Path) -> None:
    """Make `partial` become `output`; what was there before is deleted. Call with the `OutputLock` held.

    Where the system can exchange two names, `output` is at no moment missing. Elsewhere there is a moment between two
    renames in which the old directory has another name; `recover` then gives it back.
    """
    if not output.exists():
        partial.rename(output)
        sync_directory(output.parent)
    elif _exchange(partial, output):
        sync_directory(output.parent)
        shutil.rmtree(partial)
    else:
        previous = _previous(output)
        output.rename(previous)
        partial.rename(output)
        sync_directory(output.parent)
        shutil.rmtree(previous)


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _previous(output: Path) -> Path:
    return output.with_name(f".{output.name}.previous")


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; False where the system or the filesystem cannot (man 2 renameat2)."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(second))
