"""One Android device, through adb: commands for its shell, and files."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import NoReturn

from pocketvlm.errors import EnvironmentFault
from pocketvlm.toolchain.devices.adb_program import AdbProgram, Done, last_line
from pocketvlm.toolchain.disk import full_error

# Seconds for a shell command that does next to nothing.
QUICK_S = 20.0
# Seconds in which nothing of a file arrives before the push counts as stuck.
STALL_S = 60.0
_POLL_S = 1.0
# adb's own exit code does not tell a command that ended from a device that went away: it is 0 for both.
_MARK = "pocketvlm-ended:"
_ENDED = re.compile(rb"\n" + _MARK.encode() + rb"(\d{1,3})\r?\n\Z")
_REASONS = {
    "unauthorized": "unlock the device and accept its question about USB debugging",
    "offline": "plug it in again; over a network: adb disconnect, then adb connect",
}
_LOST = "check the cable and that the device is awake; `adb devices` shows whether it is back; then run the same command again"
# How adb's own complaints begin; a program on the device complains in the same stream.
_COMPLAINT = re.compile(r"adb: |error: ")
_GONE = re.compile(r"not found|closed|no devices|connection|\bEOF\b", re.IGNORECASE)
_WRITABLE = "choose a folder below /data/local/tmp, which adb may write"
_NOT_WRITABLE = ("read-only file system", "permission denied", "operation not permitted")
_IN_THE_WAY = ("not a directory", "file exists", "is a directory")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a shell command on the device gave."""

    code: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        return self.raw.decode(errors="replace")

    @property
    def said(self) -> str:
        """The last line of its complaint."""
        return last_line(self.err) if self.err.strip() else last_line(self.out)


class Adb:
    """A device that is there and lets us in.

    Args:
        serial: as `adb devices` gives it.
    """

    def __init__(self, program: AdbProgram, serial: str) -> None:
        self.program = program
        self.serial = serial

    def shell(self, script: str, what: str, *, limit: float = QUICK_S, stdin: bytes = b"") -> Answer:
        """Run a script in the device's shell (POSIX; arguments must be quoted, see `command`).

        Args:
            what: what is waited for, for messages: "its properties".
            limit: seconds.

        Raises:
            EnvironmentFault: the limit has passed, or the device has gone.
        """
        done = self.program.run(self.arguments("shell", marked(script)), limit, f"{what}, from {self.serial}", stdin)
        return self.answer(done, what)

    def answer(self, done: Done, what: str) -> Answer:
        """What a `marked` script gave.

        Raises:
            EnvironmentFault: the device went away before the script's end.
        """
        ended = _ENDED.search(done.out)
        if ended is None:
            self.lost(done, what)
        return Answer(int(ended[1]), done.out[: ended.start()], done.err)

    def arguments(self, *arguments: str) -> list[str]:
        """Arguments of adb for this device."""
        return ["-s", self.serial, *arguments]

    def push(self, source: Path, target: str, arrived: Callable[[int], None]) -> None:
        """Copy a file to the device. However it ends, nobody has checked what is there then.

        Args:
            target: absolute path of the file, not of a folder.
            arrived: told how many more bytes are there, about once a second.

        Raises:
            EnvironmentFault: nothing arrived for a minute, the device has gone, its disk is full or not writable.
        """
        arguments = [str(self.program.path), *self.arguments("push", str(source.resolve()), target)]
        process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, err = self._watch(process, target, arrived)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        if process.returncode:
            said = _push_complaint(f"{err.decode(errors='replace')}\n{out.decode(errors='replace')}")
            if not _is_refusal(said):
                # Has the device gone? Then this says so.
                self.shell("true", f"{target} to arrive")
            self.refused(said, target)

    def _watch(self, process: subprocess.Popen[bytes], target: str, arrived: Callable[[int], None]) -> tuple[bytes, bytes]:
        seen, since = 0, time.monotonic()
        while True:
            try:
                return process.communicate(timeout=_POLL_S)
            except subprocess.TimeoutExpired:
                pass
            size = self._size(target)
            if size > seen:
                arrived(size - seen)
                seen, since = size, time.monotonic()
            elif time.monotonic() - since > STALL_S:
                raise EnvironmentFault(f"{self.serial}: nothing of {target} arrived for {STALL_S:g} s", _LOST)

    def _size(self, path: str) -> int:
        told = self.shell(f"stat -c %s {quote(path)} 2>/dev/null", "the size of a file").out.strip()
        return int(told) if told.isdigit() else 0

    def refused(self, said: str, place: str) -> NoReturn:
        """Tell why the device did not take something.

        Args:
            said: adb's words, or those of a command on the device.
            place: path on the device.

        Raises:
            EnvironmentFault: always.
        """
        where = f"{self.serial}:{place}"
        words = said.casefold()
        if full_error(said) is not None:
            raise EnvironmentFault(f"{where}: no space left on the device", "remove something from it, and run the same again")
        for reason in _NOT_WRITABLE:
            if reason in words:
                raise EnvironmentFault(f"{where}: {reason}", _WRITABLE)
        if any(reason in words for reason in _IN_THE_WAY):
            raise EnvironmentFault(f"{where}: {said}", "something else is in its place: remove it, or choose another folder")
        raise EnvironmentFault(f"{where}: {said}", "`pocketvlm doctor --device adb` says whether the device has what is needed")

    def lost(self, done: Done, what: str) -> NoReturn:
        """Tell that the device went away, or what else adb complained about.

        Raises:
            EnvironmentFault: always.
        """
        complaints = [line.strip() for line in done.err.splitlines() if _COMPLAINT.match(line)]
        said = complaints[-1] if complaints else ""
        for reason, hint in _REASONS.items():
            if reason in said:
                raise EnvironmentFault(f"device {self.serial} is {reason} (waited for {what})", hint)
        if said and not _GONE.search(said):
            raise EnvironmentFault(f"device {self.serial}: adb says: {said} (waited for {what})", _LOST)
        raise EnvironmentFault(f"device {self.serial} has gone (waited for {what})", _LOST)


def _is_refusal(said: str) -> bool:
    words = said.casefold()
    return full_error(said) is not None or any(reason in words for reason in (*_NOT_WRITABLE, *_IN_THE_WAY))


def _push_complaint(text: str) -> str:
    """Why `adb push` failed, without the files' names; it ends with a line of statistics whatever happened."""
    complaints = [line for line in text.splitlines() if _COMPLAINT.match(line)]
    return re.sub(r"^adb: error: failed to copy '.*' to '.*?': ", "", complaints[0]) if complaints else last_line(text)


def marked(script: str) -> str:
    """A script whose end shows in its output, so that a lost connection is no end."""
    return f"(\n{script}\n)\ncode=$?\necho\necho {_MARK}$code"


def command(words: Sequence[str]) -> str:
    """A command line for the device's shell in which every word stays one word."""
    return " ".join(map(quote, words))
