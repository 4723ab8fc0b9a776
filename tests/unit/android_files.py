"""Small Android files for tests, made by hand: a Dalvik executable, a binary manifest, a library, an APK."""

from __future__ import annotations

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

ANDROID = "http://schemas.android.com/apk/res/android"


def uleb(value: int) -> bytes:
    encoded = bytearray()
    while True:
        byte = value & 0x7F
        value >>= 7
        encoded.append(byte | (0x80 if value else 0))
        if not value:
            return bytes(encoded)


def dex(
    code: bytes = b"\x0e\x00",
    *,
    name: str = "Ldev/Trial;",
    parent: str = "Ljava/lang/Object;",
    used: str = "Ljava/lang/Missing;",
) -> bytes:
    """One class with the method `void run()` of the given code. Index 0 of methods is its own, 1 is `used.call()V`.

    Types are numbered in the order of their names, as the format wants.
    """
    strings = sorted({name, parent, used, "V", "call", "run"})
    types = sorted({name, parent, used, "V"}, key=strings.index)
    number = {text: index for index, text in enumerate(strings)}
    kind = {text: index for index, text in enumerate(types)}
    methods = [(kind[name], 0, number["run"]), (kind[used], 0, number["call"])]

    header = 0x70
    string_ids = header
    type_ids = string_ids + 4 * len(strings)
    proto_ids = type_ids + 4 * len(types)
    method_ids = proto_ids + 12
    class_defs = method_ids + 8 * len(methods)
    data = class_defs + 32
    content = bytearray()

    def place(block: bytes, unit: int = 1) -> int:
        while (data + len(content)) % unit:
            content.append(0)
        start = data + len(content)
        content.extend(block)
        return start

    offsets = [place(uleb(len(text)) + text.encode() + b"\0") for text in strings]
    code_at = place(struct.pack("<HHHHII", 2, 1, 0, 0, 0, len(code) // 2) + code, 4)
    class_data = place(uleb(0) + uleb(0) + uleb(0) + uleb(1) + uleb(0) + uleb(1) + uleb(code_at))
    body = struct.pack(f"<{len(offsets)}I", *offsets)
    body += struct.pack(f"<{len(types)}I", *(number[text] for text in types))
    body += struct.pack("<3I", number["V"], kind["V"], 0)
    body += b"".join(struct.pack("<HHI", *method) for method in methods)
    body += struct.pack("<8I", kind[name], 1, kind[parent], 0, 0xFFFFFFFF, 0, class_data, 0)
    size = data + len(content)
    tables = [
        (len(strings), string_ids), (len(types), type_ids), (1, proto_ids), (0, 0), (len(methods), method_ids), (1, class_defs),
        (len(content), data),
    ]  # fmt: skip
    start = struct.pack("<IIIII", size, header, 0x12345678, 0, 0) + struct.pack("<I", 0)
    start += b"".join(struct.pack("<II", *table) for table in tables)
    signed = start + body + bytes(content)
    return sealed(b"dex\n039\0" + bytes(24) + signed)


def sealed(content: bytes) -> bytes:
    """An executable with the checksums of its content."""
    signature = hashlib.sha1(content[32:], usedforsecurity=False).digest()
    rest = signature + content[32:]
    return content[:8] + struct.pack("<I", zlib.adler32(rest)) + rest


def call(method: int) -> bytes:
    """invoke-virtual {v0}, method; return-void."""
    return bytes([0x6E, 0x10]) + struct.pack("<HH", method, 0) + b"\x0e\x00"


Attributes = Mapping[str, str | int | bool]
Node = tuple[str, Attributes, Sequence["Node"]]


def binary_xml(root: Node) -> bytes:
    """A manifest as aapt2 writes it. Attributes whose names begin with "android:" are of Android's namespace."""
    strings: list[str] = [ANDROID]

    def number(text: str) -> int:
        if text not in strings:
            strings.append(text)
        return strings.index(text)

    def write(node: Node) -> bytes:
        name, attributes, children = node
        values = b""
        for key, value in attributes.items():
            space = 0 if key.startswith("android:") else 0xFFFFFFFF
            key = key.removeprefix("android:")
            if isinstance(value, bool):
                kind, raw, number_of = 0x12, 0xFFFFFFFF, 0xFFFFFFFF if value else 0
            elif isinstance(value, int):
                kind, raw, number_of = 0x10, 0xFFFFFFFF, value
            else:
                kind, raw = 0x03, number(value)
                number_of = raw
            values += struct.pack("<IIIHBBI", space, number(key), raw, 8, 0, kind, number_of)
        start = struct.pack("<HHIIIIIHHHHHH", 0x0102, 16, 36 + len(values), 1, 0xFFFFFFFF, 0xFFFFFFFF, number(name), 20, 20,
                            len(attributes), 0, 0, 0) + values  # fmt: skip
        end = struct.pack("<HHIIIII", 0x0103, 16, 24, 1, 0xFFFFFFFF, 0xFFFFFFFF, number(name))
        return start + b"".join(write(child) for child in children) + end

    elements = write(root)
    texts = b""
    offsets = []
    for text in strings:
        offsets.append(len(texts))
        texts += struct.pack("<H", len(text)) + text.encode("utf-16-le") + b"\0\0"
    texts += bytes(-len(texts) % 4)
    start = 28 + 4 * len(offsets)
    pool = struct.pack("<HHIIIIII", 0x0001, 28, start + len(texts), len(strings), 0, 0, start, 0)
    pool += struct.pack(f"<{len(offsets)}I", *offsets) + texts
    return struct.pack("<HHI", 0x0003, 8, 8 + len(pool) + len(elements)) + pool + elements


def elf(machine: int = 183, alignment: int = 16384, magic: bytes = b"\x7fELF\x02\x01") -> bytes:
    """A library with one loaded segment and nothing in it."""
    header = magic.ljust(16, b"\0") + struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 120, 120, alignment)


def with_signature_block(apk: bytes, identity: int = 0x7109871A) -> bytes:
    """An archive with a block where apksigner puts one."""
    end = apk.rindex(b"PK\5\6")
    (directory,) = struct.unpack_from("<I", apk, end + 16)
    pair = struct.pack("<QI", 4 + 8, identity) + bytes(8)
    size = struct.pack("<Q", len(pair) + 24)
    block = size + pair + size + b"APK Sig Block 42"
    moved = apk[:directory] + block + apk[directory:end]
    return moved + apk[end : end + 16] + struct.pack("<I", directory + len(block)) + apk[end + 20 :]


def write_zip(path: Path, entries: Mapping[str, bytes], stored: Sequence[str] = ()) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            method = zipfile.ZIP_STORED if name in stored else zipfile.ZIP_DEFLATED
            archive.writestr(zipfile.ZipInfo(name), content, method)
