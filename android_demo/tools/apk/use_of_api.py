"""Whether code asks for anything that Android lacks: on the oldest phone that may install it, and on the newest."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from apk.api import Api, ApiClass, has_member
from apk.dex import DexClass, is_primitive
from apk.faults import DamagedError


@dataclass(frozen=True, slots=True)
class Allowance:
    """Something that code may name although the oldest Android lacks it.

    Attributes:
        by: name of the class whose code does, or the beginning of its name when it ends with "*".
        uses: a class, a class and a member ("android/os/Build.SOC_MODEL"), or the beginning of a name.
        since: API level that brought it; None where no Android has it.
        why: what keeps it from being reached where it is missing.
    """

    by: str
    uses: tuple[str, ...]
    since: int | None
    why: str

    def covers(self, user: str, used: str) -> bool:
        """Whether it is about a class that uses something."""
        return _fits(self.by, user) and any(_fits(pattern, used) for pattern in self.uses)


def read_allowances(path: Path) -> list[Allowance]:
    """The tables `[[allow]]` of a TOML file.

    Raises:
        DamagedError: one is not complete.
    """
    found = []
    for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("allow", []):
        if not {"by", "uses", "why"} <= set(entry) <= {"by", "uses", "why", "since"}:
            raise DamagedError(f"{path.name}: an entry with {sorted(entry)}; wanted: by, uses, why and perhaps since")
        found.append(Allowance(entry["by"], tuple(entry["uses"]), entry.get("since"), entry["why"]))
    return found


def api_faults(classes: Iterable[DexClass], oldest: Api, newest: Api, allowances: list[Allowance]) -> list[str]:
    """Uses that the oldest Android lacks and no allowance explains, or that an allowance says a newer one has when none does.

    Args:
        oldest: the public API of the oldest version, Java's classes included.
        newest: Android's own classes of the newest version.
    """
    own = {found.name: found for found in classes}
    faults = []
    for found in own.values():
        for used in sorted(_uses(found, own)):
            owner, _, member = used.partition(".")
            if _has(own, oldest, owner, member):
                continue
            allowance = next((one for one in allowances if one.covers(found.name, used)), None)
            if allowance is None:
                faults.append(f"{found.name} uses {used}, which the oldest Android lacks")
            elif allowance.since is not None and not _has(own, newest, owner, member):
                faults.append(
                    f"{found.name} uses {used}, which no Android has, though {allowance.by} allows it as one that has"
                )
    return faults


def _uses(found: DexClass, own: dict[str, DexClass]) -> set[str]:
    """Classes and members that are not simply ours."""
    used = {name for name in found.types if name not in own}
    for member in found.uses:
        if is_primitive(member.owner):
            continue
        if member.owner not in own or member.name not in own[member.owner].members:
            used.add(f"{member.owner}.{member.name}")
    return used


def _has(own: dict[str, DexClass], api: Api, owner: str, member: str) -> bool:
    if not member:
        return owner in own or api.find(owner) is not None
    return has_member(_Layered(own, api), owner, member) or owner == "java/lang/Object"


class _Layered:
    """Our own classes above Android's: a member may be inherited through several of ours from one of Android's."""

    def __init__(self, own: dict[str, DexClass], api: Api) -> None:
        self._own = own
        self._api = api

    def find(self, name: str) -> ApiClass | None:
        if name in self._own:
            found = self._own[name]
            # An interface's methods include those of Object.
            return ApiClass((*found.parents, "java/lang/Object"), frozenset(found.members))
        return self._api.find(name)


def _fits(pattern: str, name: str) -> bool:
    if pattern.endswith("*"):
        return name.startswith(pattern[:-1])
    return name == pattern or name.startswith((f"{pattern}.", f"{pattern}$"))
