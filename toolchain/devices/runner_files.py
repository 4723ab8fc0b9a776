"""The files that the Kotlin runtime needs on a device: its own jar, and ONNX Runtime's libraries from the Android archive."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pocketvlm.errors import EnvironmentFault

ONNXRUNTIME = "1.29.0"
COORDINATES = f"com.microsoft.onnxruntime:onnxruntime-android:{ONNXRUNTIME}"
LIBRARIES = ("libonnxruntime.so", "libonnxruntime4j_jni.so")
# What the runtime and its libraries exist for, by Android's names.
ABIS = ("arm64-v8a", "x86_64")
RUNNER_NAME = "pocketvlm-runner.jar"
MAIN = "dev.pocketvlm.runner.Main"
RUNNER_VARIABLE, ONNXRUNTIME_VARIABLE = "POCKETVLM_RUNNER", "POCKETVLM_ONNXRUNTIME_AAR"
_IN_CLONE = Path("build") / "android" / RUNNER_NAME
_MAIN_CLASS = MAIN.replace(".", "/") + ".class"
_ARCHIVE = f"onnxruntime-android-{ONNXRUNTIME}.aar"
_CACHES = (
    f".m2/repository/com/microsoft/onnxruntime/onnxruntime-android/{ONNXRUNTIME}/*.aar",
    f".gradle/caches/modules-2/files-2.1/com.microsoft.onnxruntime/onnxruntime-android/{ONNXRUNTIME}/*/*.aar",
)
_GET_ARCHIVE = (
    f"get it with Maven: mvn dependency:get -Dartifact={COORDINATES}:aar; "
    f"or give the file by --onnxruntime-android or {ONNXRUNTIME_VARIABLE}"
)
_GET_RUNNER = f"build it as docs/devices.md says, or give the file by --runner or {RUNNER_VARIABLE}"
_MAX_LIBRARY_BYTES = 512 << 20
_MAX_ENTRIES = 20_000
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class RunnerFiles:
    """The jar, and the archive that the libraries are in."""

    runner: Path
    onnxruntime: Path


def find_runner_files(runner: Path | None, onnxruntime: Path | None) -> RunnerFiles:
    """Both files.

    Args:
        runner, onnxruntime: where they are; looked for unless given.

    Raises:
        EnvironmentFault: one is missing or damaged; the hint says how to get it.
    """
    return RunnerFiles(find_runner(runner), find_archive(onnxruntime))


def find_runner(given: Path | None, environment: Mapping[str, str] | None = None) -> Path:
    """The jar with the runtime: a file that is given, else that of POCKETVLM_RUNNER, else that of this clone's build.

    Raises:
        EnvironmentFault: it is missing, or holds no runtime.
    """
    named = _named(given, "--runner", RUNNER_VARIABLE, _GET_RUNNER, environment)
    path = named or _clone() / _IN_CLONE
    if not path.is_file():
        raise EnvironmentFault(f"the runtime for Android is not there: {path}", _GET_RUNNER)
    with _open(path, _GET_RUNNER) as archive:
        names = set(archive.namelist())
    if not names & {"classes.dex", _MAIN_CLASS}:
        raise EnvironmentFault(f"{path}: neither classes.dex nor {_MAIN_CLASS} is in it", _GET_RUNNER)
    return path


def find_archive(given: Path | None, environment: Mapping[str, str] | None = None, home: Path | None = None) -> Path:
    """ONNX Runtime's archive for Android: a file that is given, else that of POCKETVLM_ONNXRUNTIME_AAR, else one that Maven or
    Gradle has fetched.

    Raises:
        EnvironmentFault: there is none.
    """
    named = _named(given, "--onnxruntime-android", ONNXRUNTIME_VARIABLE, _GET_ARCHIVE, environment)
    if named is not None:
        return named
    for pattern in _CACHES:
        for path in sorted((home or Path.home()).glob(pattern)):
            if path.name == _ARCHIVE and path.is_file():
                return path
    raise EnvironmentFault(f"ONNX Runtime for Android is not there: {COORDINATES}", _GET_ARCHIVE)


def unpack_libraries(archive: Path, abi: str, folder: Path) -> list[Path]:
    """Write the libraries for an instruction set to a folder, which they will be the only files of.

    Raises:
        EnvironmentFault: the archive is damaged, lacks a library, or says that one is larger than any is.
    """
    with _open(archive, _GET_ARCHIVE) as opened:
        entries = {entry.filename: entry for entry in opened.infolist()}
        return [_unpack(archive, opened, entries.get(f"jni/{abi}/{name}"), abi, folder / name) for name in LIBRARIES]


def _unpack(archive: Path, opened: zipfile.ZipFile, entry: zipfile.ZipInfo | None, abi: str, target: Path) -> Path:
    if entry is None:
        raise EnvironmentFault(f"{archive}: jni/{abi}/{target.name} is not in it", _GET_ARCHIVE)
    if entry.file_size > _MAX_LIBRARY_BYTES:
        raise EnvironmentFault(f"{archive}: {entry.filename} would be {entry.file_size} bytes", _GET_ARCHIVE)
    try:
        with opened.open(entry) as source, target.open("xb") as copy:
            # zipfile reads no more than the entry's size, and compares its checksum at the end.
            while block := source.read(_BLOCK):
                copy.write(block)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise EnvironmentFault(f"{archive}: {entry.filename} is damaged: {error}", _GET_ARCHIVE) from error
    return target


def _named(given: Path | None, option: str, variable: str, hint: str, environment: Mapping[str, str] | None) -> Path | None:
    told = (os.environ if environment is None else environment).get(variable)
    path, source = (given, option) if given is not None else (Path(told) if told else None, variable)
    if path is not None and not path.is_file():
        raise EnvironmentFault(f"{path}: no such file (from {source})", hint)
    return path


def _open(path: Path, hint: str) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise EnvironmentFault(f"{path}: damaged: {error}", hint) from error
    names = archive.namelist()
    if len(names) > _MAX_ENTRIES or len(names) != len(set(names)):
        archive.close()
        raise EnvironmentFault(f"{path}: too many or repeated entries", hint)
    return archive


def _clone() -> Path:
    """Where the toolchain is in a clone. Installed elsewhere, nothing is found there."""
    return Path(__file__).resolve().parents[2]
