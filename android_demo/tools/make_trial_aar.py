"""Make archives that stand in for those with native libraries, which not every machine can get.

    python3 make_trial_aar.py ONNXRUNTIME_JAR FOLDER

writes onnxruntime-android.aar, onnxruntime-android-qnn.aar and qnn-runtime.aar. The libraries are those for Linux, which
Android cannot load, or empty: an APK with them is for the checks, not for a phone.
"""

from __future__ import annotations

import io
import struct
import sys
import zipfile
from pathlib import Path

PAGE = 16384
_LOAD = 1
_FOLDERS = {"arm64-v8a": "linux-aarch64", "x86_64": "linux-x64"}
_LIBRARIES = ("libonnxruntime.so", "libonnxruntime4j_jni.so")
_QUALCOMM = ("libQnnHtp.so", "libQnnSystem.so", "libQnnHtpV79Stub.so")
_HEXAGON = 164


def with_alignment(elf: bytes, alignment: int) -> bytes:
    """A library whose loaded segments claim to be aligned to `alignment` bytes."""
    changed = bytearray(elf)
    (headers,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    for index in range(count):
        at = headers + size * index
        if struct.unpack_from("<I", elf, at)[0] == _LOAD:
            struct.pack_into("<Q", changed, at + 48, alignment)
    return bytes(changed)


def java_api(jar: zipfile.ZipFile) -> bytes:
    """ONNX Runtime's classes, in the very bytes that build_apk.sh takes from the jar, so that what it has cached serves."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as classes:
        for name in jar.namelist():
            if name.startswith("ai/onnxruntime/") and name.endswith(".class"):
                classes.writestr(zipfile.ZipInfo(name), jar.read(name))
    return content.getvalue()


def write(target: Path, jar: zipfile.ZipFile, abis: list[str], alignment: int = PAGE) -> None:
    """An archive of ONNX Runtime."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("classes.jar", java_api(jar))
        for abi in abis:
            for library in _LIBRARIES:
                content = jar.read(f"ai/onnxruntime/native/{_FOLDERS[abi]}/{library}")
                archive.writestr(f"jni/{abi}/{library}", with_alignment(content, alignment))


def write_qualcomm(target: Path) -> None:
    """An archive of Qualcomm's libraries: headers with nothing behind them."""
    header = b"\x7fELF\x02\x01".ljust(16, b"\0") + struct.pack("<HHIQQQIHHHHHH", 3, 183, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    library = header + struct.pack("<IIQQQQQQ", _LOAD, 5, 0, 0, 0, 120, 120, PAGE)
    skeleton = b"\x7fELF\x01\x01".ljust(16, b"\0") + struct.pack("<HH", 3, _HEXAGON) + bytes(32)
    with zipfile.ZipFile(target, "w") as archive:
        for name in _QUALCOMM:
            archive.writestr(f"jni/arm64-v8a/{name}", library)
        archive.writestr("jni/arm64-v8a/libQnnHtpV79Skel.so", skeleton)


def main(jar: Path, folder: Path) -> None:
    """Write all three."""
    with zipfile.ZipFile(jar) as source:
        write(folder / "onnxruntime-android.aar", source, list(_FOLDERS))
        write(folder / "onnxruntime-android-qnn.aar", source, ["arm64-v8a"])
    write_qualcomm(folder / "qnn-runtime.aar")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
