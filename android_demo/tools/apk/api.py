"""What a version of Android offers: from an animal-sniffer signature (its public API), or from its class files."""

from __future__ import annotations

import gzip
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from apk.faults import DamagedError


@dataclass(frozen=True, slots=True)
class ApiClass:
    """A class: names of what it extends and implements, and its own members, as in `apk.dex`."""

    parents: tuple[str, ...]
    members: frozenset[str]


class Api(Protocol):
    """Classes by name."""

    def find(self, name: str) -> ApiClass | None:
        """The class; None where there is none of that name."""
        ...


def has_member(api: Api, owner: str, member: str) -> bool:
    """Whether a class or one that it inherits from has a member."""
    found = api.find(owner)
    if found is None:
        return False
    return member in found.members or any(has_member(api, parent, member) for parent in found.parents)


class SignatureApi:
    """The public API of an Android version, from a signature file of animal-sniffer: Java objects in gzip.

    Raises:
        DamagedError: it is not such a file.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._classes = dict(_SignatureReader(gzip.decompress(path.read_bytes())).classes())
        except (OSError, EOFError, struct.error, IndexError, KeyError, ValueError) as error:
            raise DamagedError(f"{path}: no signature file: {error}") from error

    def find(self, name: str) -> ApiClass | None:
        return self._classes.get(name)


class _SignatureReader:
    """As much of Java's serialization as such a file uses: objects `Clazz` with strings, string arrays and hash sets."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 4
        self._handles: list[Any] = []
        if data[:4] != b"\xac\xed\x00\x05":
            raise ValueError("it does not begin with Java's mark")

    def classes(self) -> list[tuple[str, ApiClass]]:
        found = []
        while self._at < len(self._data):
            entry = self._value()
            # The list ends with a null reference.
            if entry is None:
                break
            parents = [entry["superClass"]] if entry["superClass"] else []
            members = frozenset(entry["signatures"])
            found.append((entry["name"], ApiClass((*parents, *(entry["superInterfaces"] or [])), members)))
        return found

    def _take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f">{form}", self._data, self._at)
        self._at += struct.calcsize(f">{form}")
        return values

    def _text(self) -> str:
        (count,) = self._take("H")
        self._at += count
        return self._data[self._at - count : self._at].decode("utf-8", "surrogatepass")

    def _value(self) -> Any:
        (tag,) = self._take("B")
        if tag == 0x70:
            return None
        if tag == 0x71:
            return self._handles[self._take("I")[0] - 0x7E0000]
        if tag == 0x74:
            return self._keep(self._text())
        if tag == 0x72:
            return self._description()
        if tag == 0x75:
            self._value()
            place = self._reserve()
            (count,) = self._take("I")
            self._handles[place] = [self._value() for _ in range(count)]
            return self._handles[place]
        if tag == 0x73:
            return self._object()
        raise ValueError(f"tag {tag:#x} at {self._at}")

    def _keep(self, value: Any) -> Any:
        self._handles.append(value)
        return value

    def _reserve(self) -> int:
        self._handles.append(None)
        return len(self._handles) - 1

    def _description(self) -> dict[str, Any]:
        described: dict[str, Any] = {"name": self._text(), "fields": []}
        self._take("Q")
        self._keep(described)
        described["flags"], count = self._take("BH")
        for _ in range(count):
            kind, name = self._take("c")[0], self._text()
            described["fields"].append(name)
            if kind not in (b"L", b"["):
                raise ValueError(f"a field of type {kind!r}")
            self._value()
        if self._take("B")[0] != 0x78:
            raise ValueError("a class with annotations")
        described["parent"] = self._value()
        return described

    def _object(self) -> Any:
        described = self._value()
        place = self._reserve()
        if described["name"].endswith("Set"):
            _, _, _, _, count = self._take("BBIfI")
            value: Any = {self._value() for _ in range(count)}
            if self._take("B")[0] != 0x78:
                raise ValueError("a set that does not end")
        else:
            value = {name: self._value() for name in described["fields"]}
        self._handles[place] = value
        return value


class ClassFileApi:
    """The classes of a jar; read when they are asked for."""

    def __init__(self, path: Path) -> None:
        self._jar = zipfile.ZipFile(path)
        self._names = set(self._jar.namelist())
        self._read: dict[str, ApiClass] = {}

    def find(self, name: str) -> ApiClass | None:
        entry = f"{name}.class"
        if entry not in self._names:
            return None
        if name not in self._read:
            self._read[name] = read_class(self._jar.read(entry))
        return self._read[name]


# Bytes behind the tag of a constant.
_CONSTANT_BYTES = {3: 4, 4: 4, 5: 8, 6: 8, 7: 2, 8: 2, 9: 4, 10: 4, 11: 4, 12: 4, 15: 3, 16: 2, 17: 4, 18: 4, 19: 2, 20: 2}


def read_class(data: bytes) -> ApiClass:
    """Parents and members of a class file.

    Raises:
        DamagedError: it is none.
    """
    try:
        return _read_class(data)
    except (struct.error, IndexError, KeyError, UnicodeDecodeError) as error:
        raise DamagedError(f"no class file: {error}") from error


def _read_class(data: bytes) -> ApiClass:
    if data[:4] != b"\xca\xfe\xba\xbe":
        raise DamagedError("no class file: it does not begin with its mark")
    (count,) = struct.unpack_from(">H", data, 8)
    at, index = 10, 1
    texts: dict[int, str] = {}
    names: dict[int, int] = {}
    while index < count:
        tag = data[at]
        if tag == 1:
            (size,) = struct.unpack_from(">H", data, at + 1)
            texts[index] = data[at + 3 : at + 3 + size].decode("utf-8", "replace")
            at += 3 + size
        else:
            if tag == 7:
                (names[index],) = struct.unpack_from(">H", data, at + 1)
            at += 1 + _CONSTANT_BYTES[tag]
        index += 2 if tag in (5, 6) else 1
    _, _, parent, interfaces = struct.unpack_from(">4H", data, at)
    parents = [parent] if parent else []
    parents += struct.unpack_from(f">{interfaces}H", data, at + 8)
    at += 8 + 2 * interfaces
    members = set()
    for separator in ("#", ""):
        (count,) = struct.unpack_from(">H", data, at)
        at += 2
        for _ in range(count):
            _, name, descriptor, attributes = struct.unpack_from(">4H", data, at)
            members.add(f"{texts[name]}{separator}{texts[descriptor]}")
            at += 8
            for _ in range(attributes):
                at += 6 + struct.unpack_from(">I", data, at + 2)[0]
    return ApiClass(tuple(texts[names[index]] for index in parents), frozenset(members))
