"""Make an archive that stands in for onnxruntime-android: `python3 make_trial_aar.py ONNXRUNTIME_JAR TARGET`.

It lets the build with native libraries be tried where the real archive cannot be had. The libraries are those for Linux, which
Android cannot load: an APK with them is for the checks, not for a phone.
"""

from __future__ import annotations

import struct
import sys
import zipfile
from pathlib import Path

PAGE = 16384
_LOAD = 1
_FOLDERS = {"arm64-v8a": "linux-aarch64", "x86_64": "linux-x64"}
_LIBRARIES = ("libonnxruntime.so", "libonnxruntime4j_jni.so")


def as_for_android(elf: bytes) -> bytes:
    """A library whose loaded segments claim to be aligned to 16 KB, as those for Android are."""
    changed = bytearray(elf)
    (headers,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    for index in range(count):
        at = headers + size * index
        if struct.unpack_from("<I", elf, at)[0] == _LOAD:
            (alignment,) = struct.unpack_from("<Q", elf, at + 48)
            struct.pack_into("<Q", changed, at + 48, max(alignment, PAGE))
    return bytes(changed)


def make(jar: Path, target: Path) -> None:
    """Write the archive."""
    with zipfile.ZipFile(jar) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("AndroidManifest.xml", '<manifest package="ai.onnxruntime"/>')
        classes = target.with_suffix(".classes.jar")
        with zipfile.ZipFile(classes, "w", zipfile.ZIP_DEFLATED) as copy:
            for name in source.namelist():
                if name.startswith("ai/onnxruntime/") and name.endswith(".class"):
                    copy.writestr(name, source.read(name))
        archive.write(classes, "classes.jar")
        classes.unlink()
        for abi, folder in _FOLDERS.items():
            for library in _LIBRARIES:
                archive.writestr(
                    f"jni/{abi}/{library}", as_for_android(source.read(f"ai/onnxruntime/native/{folder}/{library}"))
                )


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
