"""Check an APK, or the jar of the command line runner, before anybody installs it.

    python3 check_apk.py --signature FILE --android-all FILE [--without-natives] [--apksigner PROGRAM] APK

Prints what it found out, or one line `error: ...` for each fault; exit code 0 or 4.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from apk.api import Api, ClassFileApi, SignatureApi
from apk.binary_xml import Element, parse
from apk.dex import Dex, DexClass
from apk.faults import DamagedError
from apk.pages import alignment_faults, is_library
from apk.signing import has_v2_signature
from apk.use_of_api import Allowance, api_faults, read_allowances

ALLOWANCES = Path(__file__).with_name("newer_api.toml")
PACKAGE = "dev.pocketvlm.demo"
MIN_SDK, TARGET_SDK = 27, 35
ABIS = ("arm64-v8a", "x86_64")
LIBRARIES = ("libonnxruntime.so", "libonnxruntime4j_jni.so")
# Other apps may open these, and nothing else.
EXPORTED = ("dev.pocketvlm.demo.chat.ChatActivity",)
PERMISSIONS: tuple[str, ...] = ()
_COMPONENTS = ("activity", "activity-alias", "service", "receiver", "provider")
# What fits into a download, and what an APK with an empty part has not.
MAX_CODE_BYTES, MIN_CODE_BYTES = 16 << 20, 200_000
MAX_APK_BYTES = 200 << 20


@dataclass(frozen=True, slots=True)
class Expected:
    """What kind of APK it should be."""

    natives: bool = True
    npu: bool = False


def manifest_faults(manifest: Element, expected: Expected) -> list[str]:
    """What the manifest says that it should not, or leaves out."""
    sdk = manifest.child("uses-sdk").attributes
    application = manifest.child("application")
    wanted = {
        "package": (manifest.attributes.get("package"), PACKAGE),
        "minSdkVersion": (sdk.get("android:minSdkVersion"), MIN_SDK),
        "targetSdkVersion": (sdk.get("android:targetSdkVersion"), TARGET_SDK),
        # The NPU's processor reads its part of Qualcomm's libraries from files.
        "extractNativeLibs": (application.attributes.get("android:extractNativeLibs"), expected.npu),
    }
    faults = [f"manifest: {name} is {value!r}, not {right!r}" for name, (value, right) in wanted.items() if value != right]
    for permission in manifest.named("uses-permission"):
        if (name := permission.attributes.get("android:name")) not in PERMISSIONS:
            faults.append(f"manifest: the permission {name} is asked for")
    optional = [
        library.attributes.get("android:required")
        for library in application.named("uses-native-library")
        if library.attributes.get("android:name") == "libcdsprpc.so"
    ]
    if optional != [False]:
        faults.append(
            "manifest: the native library libcdsprpc.so is not used, or required: the NPU needs it, other phones lack it"
        )
    return faults + _exported_faults(application)


def _exported_faults(application: Element) -> list[str]:
    faults: list[str] = []
    found: set[str] = set()
    for component in application.children:
        if component.name not in _COMPONENTS:
            continue
        name = str(component.attributes.get("android:name"))
        # A name may leave out the package.
        name = PACKAGE + name if name.startswith(".") else name
        exported = component.attributes.get("android:exported")
        if exported is None and any(component.named("intent-filter")):
            faults.append(f"manifest: {name} does not say whether it is exported")
        if exported:
            found.add(name)
            if name not in EXPORTED:
                faults.append(f"manifest: other apps may open {name}")
    return faults + [f"manifest: {name} is not exported" for name in EXPORTED if name not in found]


def code_faults(archive: zipfile.ZipFile, oldest: Api, newest: Api, allowances: list[Allowance]) -> list[str]:
    """What is wrong with the code: damage, method handles, or uses of what Android lacks."""
    names = sorted(name for name in archive.namelist() if name.startswith("classes") and name.endswith(".dex"))
    right = ["classes.dex", *(f"classes{number}.dex" for number in range(2, len(names) + 1))]
    if not names or sorted(right) != names:
        return [f"code: there are {names or 'no classes'}"]
    classes: list[DexClass] = []
    for name in names:
        try:
            classes += Dex(archive.read(name)).classes
        except DamagedError as error:
            return [f"{name}: {error}"]
    faults = [
        f"{found.name} uses {kind}, which needs method handles"
        for found in classes
        for kind in sorted(found.handles)
        if not any(one.covers(found.name, kind) for one in allowances)
    ]
    twice = len(classes) - len({found.name for found in classes})
    if twice:
        faults.append(f"code: {twice} classes are defined twice")
    size = sum(archive.getinfo(name).file_size for name in names)
    if not MIN_CODE_BYTES <= size <= MAX_CODE_BYTES:
        faults.append(f"code: {size} bytes, expected {MIN_CODE_BYTES} to {MAX_CODE_BYTES}")
    return faults + api_faults(classes, oldest, newest, allowances)


def native_faults(archive: zipfile.ZipFile, expected: Expected) -> list[str]:
    """Libraries that are missing, or should not be there."""
    found = {name for name in archive.namelist() if is_library(name)}
    if not expected.natives:
        return [f"{name}: native code in what is called without natives" for name in sorted(found)]
    wanted = {f"lib/{abi}/{name}" for abi in ABIS for name in LIBRARIES}
    if expected.npu:
        wanted = {f"lib/arm64-v8a/{name}" for name in (*LIBRARIES, "libQnnHtp.so", "libQnnSystem.so")}
    return [f"{name} is missing" for name in sorted(wanted - found)]


def check_apk(path: Path, expected: Expected, oldest: Api, newest: Api, allowances: list[Allowance]) -> list[str]:
    """All that is wrong with an APK, apart from whether its signature is right."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if len(set(names)) != len(names):
                return ["an entry stands there twice"]
            if (broken := archive.testzip()) is not None:
                return [f"{broken}: its checksum is not that of its content"]
            faults = alignment_faults(archive) + native_faults(archive, expected)
            if "AndroidManifest.xml" in names:
                faults += manifest_faults(parse(archive.read("AndroidManifest.xml")), expected)
            else:
                faults.append("AndroidManifest.xml is missing")
            faults += [] if "resources.arsc" in names else ["resources.arsc is missing"]
            faults += code_faults(archive, oldest, newest, allowances)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, DamagedError) as error:
        return [f"damaged: {error}"]
    content = path.read_bytes()
    if len(content) > MAX_APK_BYTES:
        faults.append(f"{len(content)} bytes, more than {MAX_APK_BYTES}")
    if not has_v2_signature(content):
        faults.append("it is not signed by scheme v2, which Android 7 and later ask for")
    return faults


def check_runner(path: Path, oldest: Api, newest: Api, allowances: list[Allowance]) -> list[str]:
    """All that is wrong with the jar of the command line runner."""
    try:
        with zipfile.ZipFile(path) as archive:
            return code_faults(archive, oldest, newest, allowances)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, DamagedError) as error:
        return [f"damaged: {error}"]


def signature_faults(path: Path, apksigner: str) -> list[str]:
    """What Android's own program says about the signature."""
    command = [apksigner, "verify", "--verbose", "--min-sdk-version", str(MIN_SDK), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0 and "Verified using v2 scheme (APK Signature Scheme v2): true" in done.stdout:
        return []
    said = (done.stdout + done.stderr).strip().splitlines()
    return [f"apksigner: {said[0] if said else f'exit code {done.returncode}'}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Check an APK, or the jar of the command line runner.")
    parser.add_argument("apk", type=Path, help="a file that ends with .apk, or the runner's .jar")
    parser.add_argument("--signature", type=Path, required=True, help="animal-sniffer's signature of the oldest Android")
    parser.add_argument("--android-all", type=Path, required=True, help="jar with the classes of the newest Android")
    parser.add_argument("--without-natives", action="store_true", help="it has no native libraries, as its name says")
    parser.add_argument("--npu", action="store_true", help="it has Qualcomm's libraries for the NPU")
    parser.add_argument("--apksigner", help="Android's program that verifies signatures")
    given = parser.parse_args(arguments)
    try:
        rules = SignatureApi(given.signature), ClassFileApi(given.android_all), read_allowances(ALLOWANCES)
        if given.apk.suffix == ".jar":
            faults = check_runner(given.apk, *rules)
        else:
            faults = check_apk(given.apk, Expected(not given.without_natives, given.npu), *rules)
            faults += signature_faults(given.apk, given.apksigner) if given.apksigner else []
    except (DamagedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    for fault in faults:
        print(f"error: {given.apk.name}: {fault}", file=sys.stderr)
    if not faults:
        print(f"{given.apk.name}: checked, {given.apk.stat().st_size / 1e6:.1f} MB")
    return 4 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
