"""Whether an APK has a signature block. Whether the signature is right, apksigner tells."""

from __future__ import annotations

import struct

_MAGIC = b"APK Sig Block 42"
_END = b"PK\5\6"
_V2 = 0x7109871A


def has_v2_signature(apk: bytes) -> bool:
    """Whether there is an APK Signature Scheme v2 block before the central directory."""
    end = apk.rfind(_END)
    if end < 0 or end + 20 > len(apk):
        return False
    (directory,) = struct.unpack_from("<I", apk, end + 16)
    if directory < 32 or apk[directory - 16 : directory] != _MAGIC:
        return False
    (size,) = struct.unpack_from("<Q", apk, directory - 24)
    start, end = directory - size, directory - 24
    if start < 8:
        return False
    while start + 12 <= end:
        length, identity = struct.unpack_from("<QI", apk, start)
        if identity == _V2:
            return True
        start += 8 + length
    return False
