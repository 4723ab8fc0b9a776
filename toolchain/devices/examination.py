"""What `pocketvlm doctor` says about an Android device: facts, and whether a bundle can be measured there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from pocketvlm.errors import EnvironmentFault
from pocketvlm.toolchain.backends.checks import Check
from pocketvlm.toolchain.devices.adb import Adb
from pocketvlm.toolchain.devices.adb_program import find_adb
from pocketvlm.toolchain.devices.bundle_pushing import ROOT
from pocketvlm.toolchain.devices.properties import Condition, Identity, free_bytes, read_condition, read_identity
from pocketvlm.toolchain.devices.report import Examined
from pocketvlm.toolchain.devices.runner_files import ABIS, find_archive, find_runner
from pocketvlm.toolchain.devices.selection import choose_device

# The first system whose shell has sha256sum.
_LEAST_API = 26
# The runtime and ONNX Runtime's libraries.
_LEAST_FREE = 100_000_000
_TOOLS = ("find", "xargs", "stat", "wc", "sha256sum", "df")


def examine(address: str | None, target: str | None) -> Examined:
    """Look at a device, and at the files for it on this computer.

    Args:
        target: the device has to be its SoC, where it names one.

    Raises:
        UsageError: a serial that can be none.
    """
    here = [
        _found("runtime for Android", "the jar", lambda: str(find_runner(None))),
        _found("ONNX Runtime for Android", "the archive", lambda: str(find_archive(None))),
    ]
    program = _found("adb", "any", _adb_version)
    if not program.ok:
        return Examined({}, (), (program, *here))
    try:
        adb = choose_device(address)
        identity = read_identity(adb)
        condition, free = read_condition(adb), free_bytes(adb, ROOT)
        checks = _device_checks(adb, identity, free, target)
    except EnvironmentFault as error:
        return Examined({}, (), (program, _fault("device", "one that answers", error), *here))
    facts = {
        "kind": "adb",
        "name": identity.name,
        **asdict(identity),
        "state": "device",
        "free_bytes": free,
        **asdict(condition),
    }
    lines = _lines(identity, condition, free)
    return Examined(facts, lines, (program, *checks, *here))


def _lines(identity: Identity, condition: Condition, free: int | None) -> tuple[tuple[str, str], ...]:
    temperatures = dict(condition.thermal.temperatures_c)
    if condition.battery.temperature_c is not None:
        temperatures.setdefault("battery", condition.battery.temperature_c)
    return (
        ("device", f"{identity.name}, {identity.system}"),
        ("condition", str(condition)),
        *(
            (f"cores {', '.join(map(str, item.cpus))}", _clock(item.current_khz, item.limit_khz, item.max_khz))
            for item in condition.cpu
        ),
        ("temperatures", ", ".join(f"{name} {value:g} °C" for name, value in temperatures.items()) or "not known"),
        ("memory", f"{_size(condition.memory_available_bytes)} of {_size(identity.memory_total_bytes)} available"),
        ("space", f"{_size(free)} free in {ROOT}"),
    )


def _device_checks(adb: Adb, identity: Identity, free: int | None, target: str | None) -> list[Check]:
    missing = adb.shell(
        f"for tool in {' '.join(_TOOLS)}; do command -v $tool >/dev/null || echo $tool; done", "its tools"
    ).out.split()  # fmt: skip
    starter = adb.shell("command -v app_process", "its app_process").out.strip()
    abi, level = identity.abi(ABIS), identity.api_level
    checks = [
        Check("device", f"{identity.name}, state device", "one that answers", ok=True),
        Check(
            "Android", "not told" if level is None else f"API {level}", f"API {_LEAST_API} (Android 8) or newer",
            ok=level is None or level >= _LEAST_API, hint="take a newer device",
        ),
        Check(
            "instruction set", ", ".join(identity.abis) or "not told", " or ".join(ABIS),
            ok=abi is not None, hint="take another device",
        ),
        Check("app_process", starter or "missing", "any", ok=bool(starter), hint="the device has to run Android"),
        Check(
            "tools of its shell", f"without {', '.join(missing)}" if missing else "all", ", ".join(_TOOLS),
            ok=not missing, hint="the device has to run Android 8 or newer",
        ),
        Check(
            "space", f"{_size(free)} free in {ROOT}", f"{_size(_LEAST_FREE)} and the bundle",
            ok=free is None or free >= _LEAST_FREE, hint="remove something from the device",
        ),
    ]  # fmt: skip
    _, _, soc = (target or "").partition(":")
    if soc:
        told = identity.soc_model
        hint = f"export for {f'qnn:{told}' if told else 'its SoC'} or ort-cpu, or take a device with {soc}"
        checks.append(Check("SoC of the device", told or "not told", soc, ok=told == soc, hint=hint))
    return checks


def _adb_version() -> str:
    program = find_adb()
    return f"{program.release or 'version not told'}, {program.path}"


def _found(name: str, needed: str, find: Callable[[], str]) -> Check:
    try:
        return Check(name, find(), needed, ok=True)
    except EnvironmentFault as error:
        return _fault(name, needed, error)


def _fault(name: str, needed: str, error: EnvironmentFault) -> Check:
    return Check(name, error.message, needed, ok=False, hint=error.hint)


def _clock(*khz: int | None) -> str:
    now, limit, most = ("?" if item is None else f"{item / 1e6:.2f}" for item in khz)
    return f"{now} GHz, may have {limit} of {most} GHz"


def _size(count: int | None) -> str:
    return "not known" if count is None else f"{count / 1e6:,.0f} MB"
