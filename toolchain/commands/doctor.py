"""`pocketvlm doctor`"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.filesize import decimal

from pocketvlm.errors import EnvironmentFault, UsageError
from pocketvlm.toolchain.backends import BACKENDS, family
from pocketvlm.toolchain.commands.output import print_json, print_line, print_pairs, print_table

# What makes ONNX Runtime's int8 kernels fast: on x86 (as /proc/cpuinfo spells them), then on ARM.
_CPU_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "sve")
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*([^;]*)(?:;.*\bextra\s*==\s*['\"](\w+)['\"])?")
# Extras, and what they are for. One with the name of a family of targets is needed for those alone.
_CHECKED = {"": "runtime", "cli": "command line", "export": "export", "qnn": "targets qnn:*"}


@dataclass(frozen=True, slots=True)
class Package:
    """One requirement. `installed` is None where the package is missing."""

    name: str
    needed_for: str
    wanted: str
    installed: str | None
    ok: bool


def doctor(target: str | None, phone_runtime: str | None, as_json: bool) -> None:
    """Print what this machine has; without `target` only the packages of runtime and command line have to be there.

    Args:
        phone_runtime: version of the target's runtime on the phone, to be compared with what is compiled here.

    Raises:
        UsageError: an unknown target, or a phone's runtime without a target that has one.
        EnvironmentFault: something needed is missing or of another version.
    """
    if target is not None:
        BACKENDS.require(target)
    extras = _extras(target)
    wanted_for = {_CHECKED[""], _CHECKED["cli"], *(_CHECKED[extra] for extra in extras)}
    packages = check_packages()
    faults = [item for item in packages if not item.ok and item.needed_for in wanted_for]
    checks = []
    if target is not None and not faults:
        checks = BACKENDS.load(target)(target).environment(phone_runtime)
    elif phone_runtime is not None and target is None:
        raise UsageError("--phone-runtime needs a target", "add --target, such as qnn:SM8750")
    memory, free = psutil.virtual_memory(), shutil.disk_usage(Path.cwd()).free
    found: dict[str, Any] = {
        "ok": not faults and all(check.ok for check in checks),
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
    if as_json and found["ok"]:
        print_json(found)
    elif not as_json:
        _print(found, packages)
    if faults:
        names = ", ".join(f"{item.name} ({item.installed or 'missing'}, wanted {item.wanted or 'any'})" for item in faults)
        raise EnvironmentFault(
            f"packages are missing or of another version: {names}",
            f"pip install 'pocketvlm[{','.join(extras)}]'; in a clone: '.[{','.join(extras)}]'",
        )
    for check in checks:
        if not check.ok:
            raise EnvironmentFault(f"{check.name}: {check.found}, needed is {check.needed}", check.hint)


def _extras(target: str | None) -> tuple[str, ...]:
    """What has to be installed to export for a target; without one, to run bundles."""
    if target is None:
        return ("cli",)
    extra = family(target)
    return ("export", extra) if extra in _CHECKED else ("export",)


def check_packages() -> list[Package]:
    """Every requirement of the runtime, the command line and the export, against what is installed."""
    found = []
    for line in importlib.metadata.requires("pocketvlm") or []:
        match = _REQUIREMENT.match(line)
        if match is None or match[1] == "pocketvlm" or (match[3] or "") not in _CHECKED:
            continue
        name, wanted = match[1], match[2].strip()
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed = None
        ok = installed is not None and satisfies(installed, wanted)
        found.append(Package(name, _CHECKED[match[3] or ""], wanted, installed, ok))
    return found


def satisfies(version: str, wanted: str) -> bool:
    """Whether `version` meets `wanted`: "", ">=1.26", "==1.29.0" or "==2.13.*", or several, separated by commas."""
    have = _numbers(version)
    for part in filter(None, (item.strip() for item in wanted.split(","))):
        operator, number = part[:2], part[2:].strip()
        limit = _numbers(number.removesuffix(".*"))
        if operator == ">=":
            good = have >= limit
        elif number.endswith(".*"):
            good = have[: len(limit)] == limit
        else:
            good = have == limit
        if not good:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    """Release numbers without local part ("2.13.0+cpu" -> 2, 13) and closing zeros."""
    numbers = [int(item) for item in re.findall(r"\d+", version.partition("+")[0])]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


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


def _print(found: dict[str, Any], packages: list[Package]) -> None:
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
        checks = [(item["name"], item["found"], item["needed"], "ok" if item["ok"] else "NO") for item in found["target"]]
        print_table("\ntarget", ("", "here", "needed", ""), checks)
    ready = {part: all(item.ok for item in packages if item.needed_for == part) for part in _CHECKED.values()}
    print_line("ready for: " + (", ".join(part for part, ok in ready.items() if ok) or "nothing"))
