"""Dalvik executables: which classes they define, and what each of them refers to.

The format is that of https://source.android.com/docs/core/runtime/dex-format, the instructions are those of
https://source.android.com/docs/core/runtime/dalvik-bytecode. Debug information and annotations are not read.

Names are those of class files: "java/lang/String", methods "length()I", fields "out#Ljava/io/PrintStream;".
"""

from __future__ import annotations

import array
import hashlib
import struct
import zlib
from dataclasses import dataclass, field

from apk.faults import DamagedError

_NONE = 0xFFFFFFFF
_HEADER_BYTES = 0x70
_LITTLE_ENDIAN = 0x12345678

# (first opcode, last opcode, code units of an instruction). Opcodes that are not listed are unused.
_LENGTHS = (
    (0x00, 0x01, 1), (0x02, 0x02, 2), (0x03, 0x03, 3), (0x04, 0x04, 1), (0x05, 0x05, 2), (0x06, 0x06, 3), (0x07, 0x07, 1),
    (0x08, 0x08, 2), (0x09, 0x09, 3), (0x0A, 0x12, 1), (0x13, 0x13, 2), (0x14, 0x14, 3), (0x15, 0x16, 2), (0x17, 0x17, 3),
    (0x18, 0x18, 5), (0x19, 0x1A, 2), (0x1B, 0x1B, 3), (0x1C, 0x1C, 2), (0x1D, 0x1E, 1), (0x1F, 0x20, 2), (0x21, 0x21, 1),
    (0x22, 0x23, 2), (0x24, 0x26, 3), (0x27, 0x28, 1), (0x29, 0x29, 2), (0x2A, 0x2C, 3), (0x2D, 0x3D, 2), (0x44, 0x6D, 2),
    (0x6E, 0x72, 3), (0x74, 0x78, 3), (0x7B, 0x8F, 1), (0x90, 0xAF, 2), (0xB0, 0xCF, 1), (0xD0, 0xE2, 2), (0xFA, 0xFB, 4),
    (0xFC, 0xFD, 3), (0xFE, 0xFF, 2),
)  # fmt: skip
# What the second code unit of an instruction is an index of.
_TYPES = {0x1C, 0x1F, 0x20, 0x22, 0x23, 0x24, 0x25}
_FIELDS = set(range(0x52, 0x6E))
_METHODS = {*range(0x6E, 0x73), *range(0x74, 0x79)}
# invoke-polymorphic, invoke-custom, const-method-handle, const-method-type: what method handles need.
_HANDLES = {
    0xFA: "invoke-polymorphic",
    0xFB: "invoke-polymorphic",
    0xFC: "invoke-custom",
    0xFD: "invoke-custom",
    0xFE: "const-method-handle",
    0xFF: "const-method-type",
}


def _lengths() -> bytes:
    units = bytearray(256)
    for first, last, count in _LENGTHS:
        units[first : last + 1] = bytes([count]) * (last + 1 - first)
    return bytes(units)


_UNITS = _lengths()


@dataclass(frozen=True, slots=True, order=True)
class Member:
    """A method or field that code names: `owner` need not be the class that has it, it may inherit it."""

    owner: str
    name: str


@dataclass(slots=True)
class DexClass:
    """One class.

    Attributes:
        members: methods and fields that it defines.
        uses: members that its code names.
        types: classes that it extends, implements, or names in its code or its members' types.
        handles: instructions about method handles in its code.
    """

    name: str
    parents: list[str]
    members: set[str] = field(default_factory=set)
    uses: set[Member] = field(default_factory=set)
    types: set[str] = field(default_factory=set)
    handles: set[str] = field(default_factory=set)


class Dex:
    """One `classes.dex`.

    Raises:
        DamagedError: it is cut off, changed, or no Dalvik executable.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.version = self._check_header()
        try:
            self._read_tables()
            self.classes = [self._class(index) for index in range(self._class_count)]
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            raise DamagedError(f"its tables point to places outside of it: {error}") from error

    @property
    def method_count(self) -> int:
        """Of at most 65,536 method references."""
        return len(self._methods)

    def _check_header(self) -> int:
        data = self._data
        if len(data) < _HEADER_BYTES or data[:4] != b"dex\n" or data[7] != 0 or not data[4:7].isdigit():
            raise DamagedError("no Dalvik executable: it does not begin with the format's mark")
        checksum, signature, size, _, endian = struct.unpack_from("<I20sIII", data, 8)
        if endian != _LITTLE_ENDIAN:
            raise DamagedError("its byte order is not little-endian")
        if size != len(data):
            raise DamagedError(f"its header says {size} bytes, there are {len(data)}")
        if checksum != zlib.adler32(data[12:]) or signature != hashlib.sha1(data[32:], usedforsecurity=False).digest():
            raise DamagedError("its checksum is not that of its content")
        return int(data[4:7])

    def _read_tables(self) -> None:
        (
            strings,
            strings_at,
            types,
            types_at,
            protos,
            protos_at,
            fields,
            fields_at,
            methods,
            methods_at,
            classes,
            classes_at,
        ) = struct.unpack_from("<12I", self._data, 0x38)
        offsets = struct.unpack_from(f"<{strings}I", self._data, strings_at)
        self._strings = [self._string(offset) for offset in offsets]
        self._types = [self._strings[index] for index in struct.unpack_from(f"<{types}I", self._data, types_at)]
        self._protos = [self._proto(protos_at + 12 * index) for index in range(protos)]
        self._fields = [self._field(fields_at + 8 * index) for index in range(fields)]
        self._methods = [self._method(methods_at + 8 * index) for index in range(methods)]
        self._class_count, self._classes_at = classes, classes_at

    def _string(self, offset: int) -> str:
        _, start = self._uleb(offset)
        # Modified UTF-8: surrogates are encoded one by one, and zero in two bytes.
        text = self._data[start : self._data.index(b"\0", start)]
        return text.replace(b"\xc0\x80", b"\0").decode("utf-8", "surrogatepass")

    def _proto(self, offset: int) -> str:
        _, result, parameters = struct.unpack_from("<3I", self._data, offset)
        return f"({''.join(self._type_list(parameters))}){self._types[result]}"

    def _type_list(self, offset: int) -> list[str]:
        if offset == 0:
            return []
        (count,) = struct.unpack_from("<I", self._data, offset)
        return [self._types[index] for index in struct.unpack_from(f"<{count}H", self._data, offset + 4)]

    def _field(self, offset: int) -> Member:
        owner, kind, name = struct.unpack_from("<HHI", self._data, offset)
        return Member(class_name(self._types[owner]), f"{self._strings[name]}#{self._types[kind]}")

    def _method(self, offset: int) -> Member:
        owner, proto, name = struct.unpack_from("<HHI", self._data, offset)
        return Member(class_name(self._types[owner]), self._strings[name] + self._protos[proto])

    def _uleb(self, offset: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = self._data[offset]
            value |= (byte & 0x7F) << shift
            offset, shift = offset + 1, shift + 7
            if byte < 0x80:
                return value, offset

    def _sleb(self, offset: int) -> tuple[int, int]:
        value, end = self._uleb(offset)
        bits = 7 * (end - offset)
        return (value - (1 << bits) if value >> (bits - 1) & 1 else value), end

    def _class(self, index: int) -> DexClass:
        name, _, parent, interfaces, _, _, content, _ = struct.unpack_from("<8I", self._data, self._classes_at + 32 * index)
        parents = [] if parent == _NONE else [self._types[parent]]
        parents += self._type_list(interfaces)
        found = DexClass(class_name(self._types[name]), [class_name(parent) for parent in parents])
        found.types.update(found.parents)
        if content:
            self._members(content, found)
        return found

    def _members(self, offset: int, found: DexClass) -> None:
        counts = []
        for _ in range(4):
            count, offset = self._uleb(offset)
            counts.append(count)
        for kind, count in enumerate(counts):
            index = 0
            for _ in range(count):
                step, offset = self._uleb(offset)
                index += step
                _, offset = self._uleb(offset)
                member = self._fields[index] if kind < 2 else self._methods[index]
                found.members.add(member.name)
                found.types.update(types_in(member.name))
                if kind >= 2:
                    code, offset = self._uleb(offset)
                    if code:
                        self._code(code, found)

    def _code(self, offset: int, found: DexClass) -> None:
        tries, _, count = struct.unpack_from("<HII", self._data, offset + 6)
        start, end = offset + 16, offset + 16 + 2 * count
        if end > len(self._data):
            raise DamagedError(f"the code of {found.name} ends outside of it")
        units = array.array("H", self._data[start:end])
        used: set[tuple[int, int]] = set()
        position = 0
        while position < count:
            unit = units[position]
            opcode = unit & 0xFF
            if unit in (0x0100, 0x0200, 0x0300):
                position += _payload_units(units, position)
                continue
            length = _UNITS[opcode]
            if length == 0:
                raise DamagedError(f"the code of {found.name} has the unknown instruction {opcode:#04x}")
            if 0x1C <= opcode <= 0x78 and length > 1:
                used.add((opcode, units[position + 1]))
            elif opcode >= 0xFA:
                found.handles.add(_HANDLES[opcode])
            position += length
        for opcode, index in used:
            if opcode in _TYPES:
                _add_type(found, self._types[index])
            elif opcode in _FIELDS:
                found.uses.add(self._fields[index])
            elif opcode in _METHODS:
                found.uses.add(self._methods[index])
        if tries:
            self._catches(end + 2 * (count % 2) + 8 * tries, found)

    def _catches(self, offset: int, found: DexClass) -> None:
        handlers, offset = self._uleb(offset)
        for _ in range(handlers):
            size, offset = self._sleb(offset)
            for _ in range(abs(size)):
                kind, offset = self._uleb(offset)
                _, offset = self._uleb(offset)
                _add_type(found, self._types[kind])
            if size <= 0:
                _, offset = self._uleb(offset)


def _payload_units(units: array.array[int], position: int) -> int:
    kind, size = units[position], units[position + 1]
    if kind == 0x0100:
        return size * 2 + 4
    if kind == 0x0200:
        return size * 4 + 2
    elements = units[position + 2] | units[position + 3] << 16
    return (elements * size + 1) // 2 + 4


def _add_type(found: DexClass, descriptor: str) -> None:
    name = class_name(descriptor)
    if not is_primitive(name):
        found.types.add(name)


def class_name(descriptor: str) -> str:
    """Of "Ljava/lang/String;" or an array of it: "java/lang/String". Of "[I": "I"."""
    if descriptor.startswith("["):
        element = descriptor.lstrip("[")
        return element[1:-1] if element.startswith("L") else element
    return descriptor[1:-1] if descriptor.startswith("L") else descriptor


def is_primitive(name: str) -> bool:
    """Whether a name that `class_name` gave is int or the like."""
    return len(name) == 1 and name in "ZBSCIJFDV"


def types_in(member: str) -> set[str]:
    """Classes that a method's or field's descriptor names."""
    found = set()
    start = member.find("L", max(member.find("("), member.find("#")))
    while start >= 0:
        end = member.index(";", start)
        found.add(member[start + 1 : end])
        # Primitive types between two class names have no L among their letters.
        start = member.find("L", end)
    return found
