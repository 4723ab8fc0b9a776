"""Finds the `adb` program and runs it, every time with a limit; a server that others use is never ended."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketvlm.errors import EnvironmentFault

# Seconds: a command that only asks the adb server; starting a server, which looks at all USB ports first.
ASK_S = 15.0
START_S = 30.0
_PROBE_S = 5.0
_SDK_VARIABLES = ("ANDROID_HOME", "ANDROID_SDK_ROOT")
_PROGRAM_VERSION = re.compile(r"Android Debug Bridge version 1\.0\.(\d+)")
_RELEASE = re.compile(r"^Version (\S+)", re.MULTILINE)
_PORT = 5037
_GET_ADB = "install Android's platform-tools (Debian and Ubuntu: apt install adb) and put adb on PATH, or set ANDROID_HOME"
_HANGING = (
    "the adb server may hang: `adb kill-server` ends it, which every other program that uses it will notice; then try again"
)


@dataclass(frozen=True, slots=True)
class Done:
    """A run of adb that has ended by itself."""

    code: int
    out: bytes
    err: str


@dataclass(frozen=True, slots=True)
class AdbProgram:
    """The program.

    Attributes:
        release: of the platform-tools ("35.0.2-12147458"); None where it does not tell.
        protocol: number that a client and its server must share.
    """

    path: Path
    release: str | None
    protocol: int

    def run(self, arguments: Sequence[str], limit: float, what: str, stdin: bytes = b"") -> Done:
        """Run adb to its end.

        Args:
            limit: seconds.
            what: what is waited for, for the message: "the list of devices".

        Raises:
            EnvironmentFault: it took longer than the limit, or cannot be started.
        """
        return _run(self.path, arguments, limit, what, stdin)


def find_adb(environment: Mapping[str, str] | None = None) -> AdbProgram:
    """The adb on PATH, or that of the Android SDK.

    Args:
        environment: PATH, ANDROID_HOME and ANDROID_SDK_ROOT; those of this process unless given.

    Raises:
        EnvironmentFault: there is none, or what is there is no adb.
    """
    variables = os.environ if environment is None else environment
    found = shutil.which("adb", path=variables.get("PATH"))
    looked = ["PATH"]
    for name in _SDK_VARIABLES:
        if found is None and variables.get(name):
            folder = Path(variables[name]) / "platform-tools"
            looked.append(f"{name} ({folder})")
            found = shutil.which("adb", path=str(folder))
    if found is None:
        raise EnvironmentFault(f"adb is not there; looked in {', '.join(looked)}", _GET_ADB)
    path = Path(found)
    told = _run(path, ["version"], ASK_S, "its version").out.decode(errors="replace")
    version = _PROGRAM_VERSION.search(told)
    if version is None:
        first = told.strip().partition("\n")[0]
        raise EnvironmentFault(f"{path} is no adb: asked for its version, it says {first[:80]!r}", _GET_ADB)
    release = _RELEASE.search(told)
    return AdbProgram(path, release[1] if release else None, int(version[1]))


def start_server(program: AdbProgram) -> None:
    """Make sure that an adb server runs that speaks as this adb does.

    An adb that meets a server with another number ends that server and starts its own. Whoever had devices there would lose
    them, so that is refused.

    Raises:
        EnvironmentFault: the server does not answer, is of another version, or does not start.
    """
    place = _server_place()
    if place is not None:
        running = _server_protocol(place)
        if running is not None and running != program.protocol:
            raise EnvironmentFault(
                f"the adb server that is running has version {running}, {program.path} has {program.protocol} and would end it",
                "use the adb that started the server (put it first on PATH), or end the server yourself: adb kill-server",
            )
    done = program.run(["start-server"], START_S, "the adb server to start")
    if done.code:
        raise EnvironmentFault(f"the adb server does not start: {last_line(done.err)}", "see what `adb start-server` says")


def last_line(text: str) -> str:
    """The last line with something in it, without adb's own news about its server."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("* ")]
    return lines[-1][:300] if lines else "it says nothing"


def _run(path: Path, arguments: Sequence[str], limit: float, what: str, stdin: bytes = b"") -> Done:
    try:
        done = subprocess.run([path, *arguments], input=stdin, capture_output=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        raise EnvironmentFault(f"adb gave no answer for {limit:g} s (waited for {what})", _HANGING) from None
    except OSError as error:
        raise EnvironmentFault(f"{path} cannot be started: {error.strerror}", _GET_ADB) from error
    return Done(done.returncode, done.stdout, done.stderr.decode(errors="replace"))


def _server_place() -> tuple[str, int] | None:
    """Where adb looks for its server; None where that is no address of this network."""
    given = os.environ.get("ADB_SERVER_SOCKET")
    if given is None:
        port = os.environ.get("ANDROID_ADB_SERVER_PORT", "")
        return os.environ.get("ANDROID_ADB_SERVER_ADDRESS") or "127.0.0.1", int(port) if port.isdigit() else _PORT
    match = re.fullmatch(r"tcp:(?:(.+):)?(\d+)", given)
    return (match[1] or "127.0.0.1", int(match[2])) if match else None


def _server_protocol(place: tuple[str, int]) -> int | None:
    """The number of a running server; None where none is running, or something else listens there."""
    where = f"{place[0]}:{place[1]}"
    try:
        with socket.create_connection(place, _PROBE_S) as connection:
            connection.settimeout(_PROBE_S)
            connection.sendall(b"000chost:version")
            answer = b""
            while len(answer) < 12 and (part := connection.recv(12 - len(answer))):
                answer += part
    except TimeoutError:
        raise EnvironmentFault(
            f"the adb server at {where} gave no answer for {_PROBE_S:g} s (waited for its version)", _HANGING
        ) from None
    except OSError:
        return None
    match = re.fullmatch(rb"OKAY0004([0-9a-fA-F]{4})", answer)
    if match is None:
        raise EnvironmentFault(
            f"what listens at {where}, where the adb server should be, is none",
            "set ANDROID_ADB_SERVER_PORT to another port, or end what listens there",
        )
    return int(match[1], 16)
