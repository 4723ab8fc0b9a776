"""The packages that PocketVLM asks for, against those that are installed."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pocketvlm.errors import EnvironmentFault

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*([^;]*)(?:;.*\bextra\s*==\s*['\"](\w+)['\"])?")
# Extras, and what they are for. One with the name of a family of targets is needed for those alone.
NEEDED_FOR = {"": "runtime", "cli": "command line", "export": "export", "qnn": "targets qnn:*"}


@dataclass(frozen=True, slots=True)
class Package:
    """One requirement. `installed` is None where the package is missing."""

    name: str
    needed_for: str
    wanted: str
    installed: str | None
    ok: bool

    def __str__(self) -> str:
        return f"{self.name} ({self.installed or 'missing'}, wanted {self.wanted or 'any'})"

    @property
    def fix(self) -> str:
        """The command that puts it right."""
        wanted = re.sub(r"\s", "", self.wanted)
        return f"pip install '{self.name}{wanted}'"


def check_packages() -> list[Package]:
    """Every requirement of the runtime, the command line and the export.

    Raises:
        EnvironmentFault: PocketVLM itself is not installed, so its requirements are not known.
    """
    return list(_packages())


def require(name: str) -> None:
    """Refuse to go on without a package, or with another version than PocketVLM was tried with.

    Raises:
        EnvironmentFault: naming both versions; or PocketVLM itself is not installed.
    """
    package = next(package for package in _packages() if package.name == name)
    if not package.ok:
        raise EnvironmentFault(f"a package is missing or of another version: {package}", package.fix)


def _packages() -> Iterator[Package]:
    try:
        lines = importlib.metadata.requires("pocketvlm") or []
    except importlib.metadata.PackageNotFoundError:
        raise EnvironmentFault(
            "pocketvlm is not installed, so the packages that it needs are not known", "in a clone: pip install -e '.[export]'"
        ) from None
    for line in lines:
        match = _REQUIREMENT.match(line)
        if match is None or match[1] == "pocketvlm" or (match[3] or "") not in NEEDED_FOR:
            continue
        name, wanted = match[1], match[2].strip()
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed = None
        ok = installed is not None and satisfies(installed, wanted)
        yield Package(name, NEEDED_FOR[match[3] or ""], wanted, installed, ok)


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
