"""Which of the devices that adb sees is meant."""

from __future__ import annotations

import difflib
import re
import time
from dataclasses import dataclass

from pocketvlm.errors import EnvironmentFault, UsageError
from pocketvlm.toolchain.devices.adb import Adb
from pocketvlm.toolchain.devices.adb_program import ASK_S, AdbProgram, find_adb, last_line, start_server

# Seconds that a device that is just connecting gets.
SETTLE_S = 5.0
_POLL_S = 0.25
_SERIAL = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9._:%\[\]-]{0,254}\Z")
_STATES = (
    "device|offline|unauthorized|authorizing|connecting|bootloader|fastboot|recovery|rescue|sideload|host|unknown|detached"
)
_LINE = re.compile(rf"(\S.*?)\s+(no permissions\b.*?|{_STATES})(?:\s+(\S+:.*))?\Z")
_HEADER = "List of devices attached"
_SETTLING = ("offline", "authorizing", "connecting")
_HINTS = {
    "unauthorized": "unlock the device and accept its question about USB debugging; if it does not ask, revoke the USB "
    "debugging authorizations in its developer options and plug it in again",
    "authorizing": "unlock the device and accept its question about USB debugging",
    "offline": "plug it in again or restart it; over a network: adb disconnect, then adb connect",
    "connecting": "wait, or plug it in again",
    "no permissions": "this computer may not open its USB port: on Linux, install udev rules for Android devices (Debian: "
    "android-sdk-platform-tools-common), join their group, and plug it in again",
}
_NONE = (
    "plug in a phone with USB debugging switched on (Settings, Developer options), or start an emulator; "
    "`adb devices` shows what adb sees"
)


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of `adb devices -l`.

    Attributes:
        state: "device" is one that can be used; "no permissions" stands for all its reasons.
        model: as the device gives it, with underscores; None where it does not tell.
    """

    serial: str
    state: str
    model: str | None

    def __str__(self) -> str:
        told = [item for item in (self.model, None if self.state == "device" else self.state) if item]
        return self.serial + (f" ({', '.join(told)})" if told else "")


def choose_device(serial: str | None) -> Adb:
    """The device of a serial, or without one the only device.

    Raises:
        UsageError: a serial that can be none.
        EnvironmentFault: no adb, no device, several, not this one, or one that does not let us in; the hint says what to do.
    """
    if serial is not None and not _SERIAL.match(serial):
        raise UsageError(f"{serial!r} is no serial of a device", "`adb devices` shows the serials")
    program = find_adb()
    start_server(program)
    until = time.monotonic() + SETTLE_S
    while True:
        listed = list_devices(program)
        meant = [item for item in listed if serial in (None, item.serial)]
        if time.monotonic() >= until or not (len(meant) == 1 and meant[0].state in _SETTLING):
            return Adb(program, _only(meant, listed, serial).serial)
        time.sleep(_POLL_S)


def list_devices(program: AdbProgram) -> list[Listed]:
    """What adb sees, whatever its state.

    Raises:
        EnvironmentFault: adb does not answer, or not as adb does.
    """
    done = program.run(["devices", "-l"], ASK_S, "the list of devices")
    text = done.out.decode(errors="replace")
    if done.code:
        raise EnvironmentFault(f"adb cannot list devices: {last_line(done.err)}", "see what `adb devices` says")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("* ")]
    if not lines or lines[0] != _HEADER:
        raise EnvironmentFault(f"adb devices says {text.strip()[:80]!r}, not what adb says", "see what `adb devices` says")
    found = []
    for line in lines[1:]:
        match = _LINE.match(line)
        if match is None:
            raise EnvironmentFault(f"adb devices has a line that says nothing: {line[:80]!r}", "see what `adb devices` says")
        state = "no permissions" if match[2].startswith("no permissions") else match[2]
        model = re.search(r"\bmodel:(\S+)", match[3] or "")
        found.append(Listed(match[1], state, model[1] if model else None))
    return found


def _only(meant: list[Listed], listed: list[Listed], serial: str | None) -> Listed:
    if not listed:
        told = "no device is connected" if serial is None else f"device {serial} is not connected, and no other is"
        raise EnvironmentFault(told, _NONE)
    if not meant:
        near = difflib.get_close_matches(str(serial), [item.serial for item in listed], n=1)
        hint = f"did you mean adb:{near[0]}?" if near else f"connected: {', '.join(map(str, listed))}"
        raise EnvironmentFault(f"device {serial} is not connected", hint)
    if len(meant) > 1:
        raise EnvironmentFault(
            f"{len(meant)} devices are connected: {', '.join(map(str, meant))}", f"name one: --device adb:{meant[0].serial}"
        )
    (device,) = meant
    if device.state == "device":
        return device
    told = (
        f"device {device.serial}: no permissions" if device.state == "no permissions" else f"{device.serial} is {device.state}"
    )
    if device.state in _SETTLING:
        told += f" (waited {SETTLE_S:g} s)"
    hint = _HINTS.get(device.state, "start Android on it: adb reboot")
    raise EnvironmentFault(told, hint)
