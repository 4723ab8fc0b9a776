"""Where a bundle can be measured: on this computer, on a phone. A kind of device is one file and one line in `DEVICES`.

A module of the table has `bench(address, job, progress) -> BenchReport` and may have, each refused where it is missing,

- `push(address, bundle, directory, progress) -> PushReport`: copies a bundle to the device;
- `examine(address, target) -> Examined`: what `pocketvlm doctor` says about it.

The address is what stands behind the kind: "R5CT" of "adb:R5CT", None of "adb".
"""

from __future__ import annotations

from typing import Any

from pocketvlm.errors import UsageError
from pocketvlm.toolchain.registry import Registry

HOST = "host"
DEVICES = Registry(
    "kind of device",
    {
        HOST: "pocketvlm.toolchain.devices.host",
        "adb": "pocketvlm.toolchain.devices.android",
    },
)


def split(device: str) -> tuple[str, str | None]:
    """Kind and address of a device as the command line names it: "adb:R5CT" -> "adb", "R5CT".

    Raises:
        UsageError: an unknown kind, or an empty address.
    """
    kind, colon, address = device.partition(":")
    DEVICES.require(kind)
    if colon and not address:
        raise UsageError(f"{device!r} lacks what stands behind the colon", f"give {kind}, or {kind}:SERIAL")
    if kind == HOST and colon:
        raise UsageError(f"{HOST} is this computer and has no address", f"give {HOST} alone")
    return kind, address or None


def ability(device: str, name: str) -> tuple[Any, str | None]:
    """The function `name` of a kind of device, and the address to call it with.

    Raises:
        UsageError: an unknown kind, or one that cannot do this.
    """
    kind, address = split(device)
    found = getattr(DEVICES.load(kind), name, None)
    if found is None:
        raise UsageError(f"{kind} has no `{name}`", "give a phone or an emulator, by --device adb")
    return found, address
