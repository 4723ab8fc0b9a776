"""Android's binary XML, as aapt2 writes AndroidManifest.xml. The format is that of libandroidfw's ResourceTypes.h."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from apk.faults import DamagedError

ANDROID = "http://schemas.android.com/apk/res/android"

_XML, _STRINGS, _START, _END = 0x0003, 0x0001, 0x0102, 0x0103
_NONE = 0xFFFFFFFF
_UTF8 = 0x100
_REFERENCE, _STRING, _BOOLEAN = 0x01, 0x03, 0x12


@dataclass(slots=True)
class Element:
    """An element; its attributes of the android namespace have names that begin with "android:".

    Values are text, whole numbers or booleans; a resource is "@0x7f010000".
    """

    name: str
    attributes: dict[str, str | int | bool] = field(default_factory=dict)
    children: list[Element] = field(default_factory=list)

    def named(self, name: str) -> Iterator[Element]:
        """Children of a name."""
        return (child for child in self.children if child.name == name)

    def child(self, name: str) -> Element:
        """The first child of a name; an element without anything where there is none."""
        return next(self.named(name), Element(name))


def parse(data: bytes) -> Element:
    """The root element.

    Raises:
        DamagedError: it is no binary XML.
    """
    try:
        return _parse(data)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise DamagedError(f"no binary XML: {error}") from error


def _parse(data: bytes) -> Element:
    kind, header, size = struct.unpack_from("<HHI", data, 0)
    if kind != _XML or size > len(data):
        raise DamagedError("no binary XML: it does not begin with the format's mark, or is cut off")
    texts: list[str] = []
    top = Element("")
    open_elements = [top]
    at = header
    while at < size:
        kind, header, length = struct.unpack_from("<HHI", data, at)
        if length < 8:
            raise DamagedError(f"no binary XML: a part of {length} bytes")
        if kind == _STRINGS:
            texts = _strings(data, at)
        elif kind == _START:
            element = _element(data, at + header, texts)
            open_elements[-1].children.append(element)
            open_elements.append(element)
        elif kind == _END:
            open_elements.pop()
        at += length
    if len(top.children) != 1 or open_elements != [top]:
        raise DamagedError("no binary XML: there is not one root element")
    return top.children[0]


def _strings(data: bytes, start: int) -> list[str]:
    count, _, flags, strings, _ = struct.unpack_from("<5I", data, start + 8)
    offsets = struct.unpack_from(f"<{count}I", data, start + 28)
    read = _utf8 if flags & _UTF8 else _utf16
    return [read(data, start + strings + offset) for offset in offsets]


def _utf8(data: bytes, at: int) -> str:
    # Its length in characters, then in bytes; each in one or two bytes.
    at += 2 if data[at] & 0x80 else 1
    size = data[at]
    if size & 0x80:
        size, at = (size & 0x7F) << 8 | data[at + 1], at + 1
    return data[at + 1 : at + 1 + size].decode("utf-8", "surrogatepass")


def _utf16(data: bytes, at: int) -> str:
    (size,) = struct.unpack_from("<H", data, at)
    if size & 0x8000:
        at += 2
        size = (size & 0x7FFF) << 16 | struct.unpack_from("<H", data, at)[0]
    return data[at + 2 : at + 2 + 2 * size].decode("utf-16-le", "surrogatepass")


def _element(data: bytes, at: int, texts: list[str]) -> Element:
    _, name, start, size, count = struct.unpack_from("<IIHHH", data, at)
    element = Element(texts[name])
    for index in range(count):
        space, key, raw, _, kind, value = struct.unpack_from("<IIIHxBI", data, at + start + index * size)
        prefix = "android:" if space != _NONE and texts[space] == ANDROID else ""
        element.attributes[prefix + texts[key]] = _value(kind, value, raw, texts)
    return element


def _value(kind: int, value: int, raw: int, texts: list[str]) -> str | int | bool:
    if kind == _STRING:
        return texts[value]
    if kind == _BOOLEAN:
        return value != 0
    if kind == _REFERENCE:
        return f"@{value:#010x}"
    return texts[raw] if raw != _NONE else value
