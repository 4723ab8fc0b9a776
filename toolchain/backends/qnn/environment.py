"""What compiling for the NPU needs on this machine, and what its binaries need on a phone."""

from __future__ import annotations

import importlib.metadata
import platform
import re

from pocketvlm.errors import EnvironmentFault, UsageError
from pocketvlm.runtime.engines.qnn_provider import PACKAGE, emulated, loaded_devices, qairt_version
from pocketvlm.toolchain.backends.base import Check
from pocketvlm.toolchain.backends.qnn.socs import Soc

_GLIBC_TAG = re.compile(r"manylinux_(\d+)_(\d+)_")
_VERSION = re.compile(r"(\d{1,9})\.(\d{1,9})(?:\.\d{1,9})*", re.ASCII)


def environment(soc: Soc, phone_runtime: str | None) -> list[Check]:
    """Checks in the order in which they matter.

    Raises:
        UsageError: `phone_runtime` is no version.
        EnvironmentFault: the package with the compiler is missing.
    """
    phone = None if phone_runtime is None else _numbers(phone_runtime)
    checks = [*_glibc(), _library()]
    version = qairt_version()
    told = f"{soc.chip}, architecture v{soc.architecture}, {soc.vtcm_mb} MB on chip"
    checks.append(Check(soc.name, told, "any of the table", ok=True))
    checks.append(Check("compiler", f"QAIRT {version}", "any", ok=True))
    if phone is not None:
        here = _numbers(version)
        checks.append(
            Check(
                "runtime on the phone", f"QAIRT {phone_runtime}", f"{here[0]}.{here[1]} or newer", phone >= here,
                f"ship com.qualcomm.qti:qnn-runtime {here[0]}.{here[1]} or newer with the app",
            )
        )  # fmt: skip
    return checks


def _numbers(version: str) -> tuple[int, int]:
    """Major and minor number, "2.50.40" -> 2, 50: patches of one release read each other's binaries."""
    found = _VERSION.fullmatch(version)
    if found is None:
        raise UsageError(
            f"--phone-runtime {version!r} is no version of QAIRT or qnn-runtime", "give two or more numbers, such as 2.50.0"
        )
    return int(found[1]), int(found[2])


def _glibc() -> list[Check]:
    """The wheel's tag says which C library it was linked against."""
    name, version = platform.libc_ver()
    wheel = importlib.metadata.distribution(PACKAGE).read_text("WHEEL") or ""
    tag = _GLIBC_TAG.search(wheel)
    if name != "glibc" or tag is None:
        return []
    needed, here = (int(tag[1]), int(tag[2])), tuple(map(int, re.findall(r"\d+", version)[:2]))
    hint = "use a newer Linux: Debian 12, Ubuntu 22.04 or later"
    return [Check("glibc", version, f"{needed[0]}.{needed[1]} or newer", here >= needed, hint)]


def _library() -> Check:
    hint = f"install {PACKAGE} again"
    try:
        devices = loaded_devices()
    except EnvironmentFault as error:
        return Check(PACKAGE, error.message, "a library that loads", ok=False, hint=hint)
    found = "loads" + (", NPU emulated" if emulated() else "")
    return Check(PACKAGE, found if devices else "finds no device", "a library that loads", bool(devices), hint)
