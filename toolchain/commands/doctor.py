"""`pocketvlm doctor`"""

from __future__ import annotations

import platform
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from rich.filesize import decimal

from pocketvlm.errors import EnvironmentFault, UsageError
from pocketvlm.toolchain.backends import BACKENDS, family
from pocketvlm.toolchain.backends.checks import Check
from pocketvlm.toolchain.commands.output import print_json, print_line, print_pairs, print_table
from pocketvlm.toolchain.devices import HOST, ability, split
from pocketvlm.toolchain.devices.report import Examined
from pocketvlm.toolchain.packages import NEEDED_FOR, Package, check_packages

# What makes ONNX Runtime's int8 kernels fast: on x86 (as /proc/cpuinfo spells them), then on ARM.
_CPU_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "sve")


def doctor(target: str | None, phone_runtime: str | None, device: str | None, as_json: bool) -> None:
    """Print what this machine has; without `target` only the packages of runtime and command line have to be there.

    As JSON it is one object, whatever comes out. Its `checks` are all that has to be right, each with name, ok, detail and,
    where something is wrong, fix.

    Args:
        phone_runtime: version of the target's runtime on the phone, to be compared with what is compiled here.
        device: another device to look at, as the command line names it.

    Raises:
        UsageError: an unknown target, a phone's runtime without a target that has one, or an unknown kind of device.
        EnvironmentFault: something needed is missing or of another version; all that is wrong is told.
    """
    if target is not None:
        BACKENDS.require(target)
    elif phone_runtime is not None:
        raise UsageError("--phone-runtime needs a target", "add --target, such as qnn:SM8750")
    extras = _extras(target)
    wanted_for = {NEEDED_FOR[extra] for extra in ("", "cli", *extras)}
    packages = check_packages()
    needed = [item for item in packages if item.needed_for in wanted_for]
    faults = [item for item in needed if not item.ok]
    checks = _target_checks(target, phone_runtime, extras) if target is not None else []
    examined = _examine(device, target)
    checks_there = [] if examined is None else list(examined.checks)
    memory, free = psutil.virtual_memory(), shutil.disk_usage(Path.cwd()).free
    found: dict[str, Any] = {
        "ok": not faults and all(check.ok for check in [*checks, *checks_there]),
        "checks": [*map(_of_package, needed), *map(_of_target, [*checks, *checks_there])],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": [asdict(item) for item in packages],
        "cpu": {
            "name": _cpu_field("model name") or platform.machine(),
            "cores": psutil.cpu_count(logical=False),
            "threads": psutil.cpu_count(),
            "flags": _cpu_flags(),
        },
        "memory": {"total_bytes": memory.total, "available_bytes": memory.available},
        "disk": {"free_bytes": free},
        "targets": list(BACKENDS.names()),
        "target": [asdict(check) for check in checks],
    }
    if examined is not None:
        found["device"] = {**examined.facts, "checks": [asdict(check) for check in checks_there]}
    if not as_json:
        _print(found, packages, None if target is None else family(target))
        if examined is not None:
            _print_device(examined)
    elif found["ok"]:
        print_json(found)
    if not found["ok"]:
        raise _fault(faults, [check for check in [*checks, *checks_there] if not check.ok], extras, found)


def _examine(device: str | None, target: str | None) -> Examined | None:
    """What another device says; None where it is this computer."""
    if device is None or split(device)[0] == HOST:
        return None
    examine, address = ability(device, "examine")
    examined: Examined = examine(address, target)
    return examined


def _target_checks(target: str, phone_runtime: str | None, extras: tuple[str, ...]) -> list[Check]:
    """The target's own checks, as far as its code can be loaded."""
    try:
        backend = BACKENDS.load(target)(target)
    except (ImportError, OSError) as error:
        # Libraries in C++ that do not load are an OSError.
        told = f"not checked: {error}"
        return [Check(f"target {target}", told, "the packages of the export", ok=False, hint=_install(extras))]
    checks: list[Check] = backend.environment(phone_runtime)
    return checks


def _of_package(package: Package) -> dict[str, Any]:
    return {
        "name": package.name,
        "ok": package.ok,
        "detail": f"{package.installed or 'missing'}, wanted {package.wanted or 'any'}",
        "fix": "" if package.ok else package.fix,
    }


def _of_target(check: Check) -> dict[str, Any]:
    detail = f"{check.found}, needed is {check.needed}"
    return {"name": check.name, "ok": check.ok, "detail": detail, "fix": "" if check.ok else check.hint}


def _fault(packages: list[Package], checks: list[Check], extras: tuple[str, ...], found: dict[str, Any]) -> EnvironmentFault:
    """All that is wrong, in one line."""
    messages, hints = [], []
    if packages:
        messages.append(f"packages are missing or of another version: {', '.join(map(str, packages))}")
        hints.append(_install(extras))
    for check in checks:
        messages.append(f"{check.name}: {check.found}, needed is {check.needed}")
        hints.append(check.hint)
    return EnvironmentFault("; ".join(messages), "; ".join(dict.fromkeys(filter(None, hints))), report=found)


def _install(extras: tuple[str, ...]) -> str:
    return f"pip install 'pocketvlm[{','.join(extras)}]'; in a clone: '.[{','.join(extras)}]'"


def _extras(target: str | None) -> tuple[str, ...]:
    """What has to be installed to export for a target; without one, to run bundles."""
    if target is None:
        return ("cli",)
    extra = family(target)
    return ("export", extra) if extra in NEEDED_FOR else ("export",)


def _cpu_field(name: str) -> str:
    if not sys.platform.startswith("linux"):
        return ""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _cpu_flags() -> list[str]:
    present = set((_cpu_field("flags") or _cpu_field("Features")).split())
    return [flag for flag in _CPU_FLAGS if flag in present]


def _print(found: dict[str, Any], packages: list[Package], asked: str | None) -> None:
    cpu = found["cpu"]
    print_pairs(
        [
            ("python", f"{found['python']} on {found['platform']}"),
            ("processor", f"{cpu['name']}, {cpu['cores']} cores, {cpu['threads']} threads"),
            ("int8 features", ", ".join(cpu["flags"]) or "none known"),
            (
                "memory",
                f"{decimal(found['memory']['available_bytes'])} of {decimal(found['memory']['total_bytes'])} available",
            ),
            ("disk", f"{decimal(found['disk']['free_bytes'])} free here"),
            ("targets", ", ".join(found["targets"])),
        ]
    )
    rows = [
        (item.name, item.installed or "missing", item.wanted, item.needed_for, "ok" if item.ok else "NO") for item in packages
    ]
    print_table("\npackages", ("package", "installed", "wanted", "for", ""), rows)
    if found["target"]:
        _print_checks("target", found["target"])
    ready = {part: all(item.ok for item in packages if item.needed_for == part) for part in NEEDED_FOR.values()}
    if asked is not None and not all(item["ok"] for item in found["target"]):
        ready[NEEDED_FOR.get(asked, "export")] = False
    print_line("ready for: " + (", ".join(part for part, ok in ready.items() if ok) or "nothing"))


def _print_device(examined: Examined) -> None:
    print_line()
    print_pairs(examined.lines)
    _print_checks("device", [asdict(check) for check in examined.checks])


def _print_checks(title: str, checks: list[dict[str, Any]]) -> None:
    rows = [(item["name"], item["found"], item["needed"], "ok" if item["ok"] else "NO") for item in checks]
    print_table(f"\n{title}", ("", "here", "needed", ""), rows)
