"""A device for adb on this computer: Debian's adbd, in network, mount and process namespaces of its own.

It is reached over its own loopback and nothing else, through a small `adb` that enters its network first, so its server is
not the user's. Its root is Debian's, below an overlay that is gone with it, with Android's shell and tools, mksh and toybox.
What Android has beyond that (getprop, dumpsys, app_process, files below /sys) are scripts and files that a test writes.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOTFS = ROOT / "build" / "adbd-rootfs"
PACKAGES = {"adb": "adb", "unshare": "util-linux", "nsenter": "util-linux", "ip": "iproute2", "chroot": "coreutils"}
PORT = 7555
SERIAL = f"127.0.0.1:{PORT}"
# Seconds for what takes a fraction of one.
LIMIT = 20.0
_INIT = """
set -e
ip link set lo up
mount -t tmpfs tmpfs "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
mkdir -p "$2/root/data/local/tmp" "$2/root/system/bin"
mount -t tmpfs -o size=1g tmpfs "$2/root/data"
mkdir -p "$2/root/data/local/tmp"
mount -t proc proc "$2/root/proc"
mount --rbind /dev "$2/root/dev"
ln -sf mksh "$2/root/usr/bin/sh"
ln -s /usr/bin/mksh "$2/root/system/bin/sh"
for tool in $(chroot "$2/root" toybox); do ln -s /usr/bin/toybox "$2/root/system/bin/$tool"; done
touch "$2/root/ready"
# The first process of its namespace: it has to bury the others.
while :; do sleep 1000 & wait; done
"""


def require_tools() -> None:
    """Skip where no such device can be, and fail where something is only not installed."""
    if not sys.platform.startswith("linux"):
        pytest.skip("namespaces and Debian's adbd need Linux")
    if os.geteuid() != 0:
        pytest.skip("namespaces and chroot need root")
    missing = [package for program, package in PACKAGES.items() if shutil.which(program) is None]
    if missing:
        pytest.fail(
            f"not installed: {', '.join(sorted(set(missing)))}; run `make android-tools` (Debian, Ubuntu)", pytrace=False
        )
    if not (ROOTFS / "complete").exists():
        if shutil.which("debootstrap") is None:
            pytest.fail("not installed: debootstrap; run `make android-tools` (Debian, Ubuntu)", pytrace=False)
        made = subprocess.run(
            [ROOT / "tests/e2e/adbd_setup.sh", ROOTFS], capture_output=True, text=True, check=False, timeout=600
        )
        if made.returncode:
            pytest.fail(f"adbd_setup.sh failed: {made.stdout[-1000:]}{made.stderr[-1000:]}", pytrace=False)


def wait_for(condition: Callable[[], object], what: str, limit: float = LIMIT) -> None:
    """Look again and again, as quickly as possible.

    Raises:
        AssertionError: it did not come true within the limit, in seconds.
    """
    until = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < until, f"{what}: not within {limit:g} s"
        time.sleep(0.001)


class AdbDevice:
    """One device. A context manager: its processes and files are gone at its end.

    Args:
        folder: an empty folder for what it needs here.

    Attributes:
        programs: a folder for PATH, with an `adb` that sees this device.
        serial: its name for adb.
    """

    def __init__(self, folder: Path) -> None:
        self.programs = folder / "programs"
        self.serial = SERIAL
        self._folder = folder
        self._mounts = folder / "mounts"
        self._init = 0
        self._unshare: subprocess.Popen[bytes] | None = None
        self._adbd: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> AdbDevice:
        try:
            self._begin()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def _begin(self) -> None:
        self._mounts.mkdir(parents=True)
        self.programs.mkdir()
        command = ["unshare", "-n", "-m", "-p", "-f", "--mount-proc", "sh", "-c", _INIT, "sh", str(ROOTFS), str(self._mounts)]
        self._unshare = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        wait_for(lambda: children.read_text().strip(), "the device's first process")
        self._init = int(children.read_text())
        wait_for(lambda: self.path("/ready").exists(), "the device's root")
        self._write_adb()
        self.start()
        # In its process namespace, so that the server ends with it.
        self._inside("-n", "-p", "adb", "start-server")
        self.connect()

    def _write_adb(self) -> None:
        adb = self.programs / "adb"
        real = shutil.which("adb")
        adb.write_text(
            f'#!/bin/sh\nexport HOME={shlex.quote(str(self._folder))}\nexec nsenter -t {self._init} -n {real} "$@"\n'
        )
        adb.chmod(0o755)

    def _end(self) -> None:
        if self._init:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._init, signal.SIGKILL)
        for process in (self._adbd, self._unshare):
            if process is not None:
                process.kill()
                process.wait(LIMIT)

    def _inside(self, *command: str) -> str:
        environment = {**os.environ, "HOME": str(self._folder)}
        done = subprocess.run(
            ["nsenter", "-t", str(self._init), *command],
            capture_output=True, text=True, check=False, timeout=LIMIT, env=environment, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        """PATH for programs that shall see this device, and nothing of the user's adb."""
        return {"PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}"}

    def path(self, name: str) -> Path:
        """A file of the device, as this computer reaches it."""
        return Path(f"/proc/{self._init}/root{self._mounts}/root{name}")

    def start(self) -> None:
        """Start adbd."""
        chroot = [str(shutil.which("chroot")), str(self._mounts / "root"), "/usr/sbin/adbd"]
        command = [
            "nsenter",
            "-t",
            str(self._init),
            "-n",
            "-m",
            "-p",
            "env",
            "-i",
            f"ADBD_PORT={PORT}",
            "PATH=/usr/local/bin:/system/bin",
        ]
        log = (self._folder / "adbd.log").open("ab")
        with log:
            self._adbd = subprocess.Popen([*command, *chroot], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(lambda: f":{PORT:04X} " in self._tcp(), "adbd to listen")

    def _tcp(self) -> str:
        return "".join(Path(f"/proc/{self._init}/net/{name}").read_text() for name in ("tcp", "tcp6"))

    def kill(self) -> None:
        """End adbd as a crash does. Commands that it has started are left alone."""
        assert self._adbd is not None
        (child,) = Path(f"/proc/{self._adbd.pid}/task/{self._adbd.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGKILL)
        self._adbd.wait(LIMIT)

    def restart(self) -> None:
        """Start adbd again, and let adb find it."""
        self.start()
        self._inside("-n", "-p", "adb", "disconnect")
        self.connect()

    def connect(self) -> None:
        """Let adb find the device."""

        def connected() -> bool:
            self._inside("-n", "-p", "adb", "connect", self.serial)
            return f"{self.serial}\tdevice" in self._inside("-n", "-p", "adb", "devices")

        wait_for(connected, "adb to see the device")

    def set_space(self, size: int) -> None:
        """Let the filesystem of /data have so many bytes in all."""
        self._inside("-m", "mount", "-o", f"remount,size={size}", str(self._mounts / "root/data"))

    def set_read_only(self, read_only: bool) -> None:
        """Let nothing, or everything, be written to /data."""
        self._inside("-m", "mount", "-o", f"remount,{'ro' if read_only else 'rw'}", str(self._mounts / "root/data"))

    def bind(self, source: Path, name: str) -> None:
        """Let the device see a file or folder of this computer, such as a JVM."""
        target = self.path(name)
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        self._inside("-m", "mount", "--bind", str(source.resolve()), f"{self._mounts}/root{name}")

    def write(self, name: str, text: str) -> None:
        """Write a file."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def program(self, name: str, text: str) -> None:
        """Write a shell script that the device's shell finds."""
        self.write(f"/usr/local/bin/{name}", f"#!/bin/sh\n{text}")
        self.path(f"/usr/local/bin/{name}").chmod(0o755)

    def properties(self, values: Mapping[str, str]) -> None:
        """Let getprop say this."""
        lines = "".join(f"[{name}]: [{value}]\n" for name, value in values.items())
        self.write("/properties", lines)
        self.program("getprop", "cat /properties\n")

    def processes(self, word: str) -> list[str]:
        """Command lines with a word in them, of processes of the device that have not ended."""
        namespace = Path(f"/proc/{self._init}/ns/pid").readlink()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if word in line and (entry / "ns/pid").readlink() == namespace:
                        found.append(line)
        return found
