"""What an aarch64 program needs on this computer: QEMU, and folders with Debian's and Python's packages for that processor.

Made once and kept in a cache, without root's rights: apt resolves and downloads packages into folders of its own, dpkg-deb
unpacks them, and pip brings the wheels. Nothing of it is installed.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pocketvlm.errors import EnvironmentFault

# The oldest Debian whose emulator runs ONNX Runtime: that of bookworm crashes when it is imported.
SUITE = "trixie"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
CACHE_VARIABLE = "POCKETVLM_CACHE"
MIRROR_VARIABLE = "POCKETVLM_DEBIAN_MIRROR"
# C++ runtimes that the wheels and ONNX Runtime's Java natives are linked against come along.
PYTHON_PACKAGES = ("python3", "libstdc++6")
JAVA_PACKAGES = ("openjdk-21-jre-headless", "libstdc++6")
# The runtime's packages, and those of `pocketvlm bench`.
WHEELS = ("numpy", "pillow", "tokenizers", "onnxruntime", "typer", "rich", "psutil")
_WHEEL_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
# Programs of the package that are kept; the second is for comparing kernels of x86 processors with each other.
PROCESSORS = ("aarch64", "x86_64")
_TOOLS = {"apt-get": "apt", "dpkg": "dpkg", "dpkg-deb": "dpkg"}
_INSTALL = "on Debian or Ubuntu: apt-get install apt dpkg debian-archive-keyring"
_STEP_SECONDS = 900.0
_POLL_SECONDS = 0.5
# Raised when the same packages would be laid out in another way.
_FORM = 1


@dataclass(frozen=True, slots=True)
class Root:
    """A folder that aarch64 programs see as `/`, as far as it has what they look for.

    Attributes:
        site: aarch64 Python packages, beside the root; there is none for Java.
    """

    folder: Path
    site: Path


def cache_folder() -> Path:
    """Where prepared things are kept: `aarch64` in the folder that POCKETVLM_CACHE names, or in the user's cache."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser().absolute() / "aarch64"
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "pocketvlm" / "aarch64"


def emulator(cache: Path, processor: str = "aarch64") -> Path:
    """The program `qemu-aarch64`, or that of another of `PROCESSORS`, prepared if it is not yet there.

    Raises:
        EnvironmentFault: a Debian package is missing on this computer, or a download failed.
    """

    def build(folder: Path) -> None:
        (archive,) = _download(folder, _output(["dpkg", "--print-architecture"]).strip(), ("qemu-user",), alone=True)
        unpacking = ["dpkg-deb", "--fsys-tarfile", str(archive)]
        with subprocess.Popen(unpacking, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
            try:
                with tarfile.open(fileobj=child.stdout, mode="r|") as packed:
                    _extract(packed, {f"./usr/bin/qemu-{name}" for name in PROCESSORS}, folder)
            finally:
                child.kill()

    return _kept(cache, "qemu", (SUITE, *PROCESSORS), build) / f"qemu-{processor}"


def _extract(packed: tarfile.TarFile, wanted: set[str], folder: Path) -> None:
    """Write programs of an archive that is read once, from its start to its end."""
    for member in packed:
        content = packed.extractfile(member) if member.name in wanted and member.isfile() else None
        if content is not None:
            program = folder / Path(member.name).name
            with program.open("wb") as file:
                shutil.copyfileobj(content, file)
            program.chmod(0o755)
            wanted.remove(member.name)
    if wanted:
        raise EnvironmentFault(f"Debian's qemu-user lacks {', '.join(sorted(wanted))}")


def python_root(cache: Path) -> Root:
    """Debian's Python with the wheels of the runtime, in the versions that are installed here.

    Raises:
        EnvironmentFault: see `emulator`; or one of the wheels does not exist for aarch64.
    """
    wanted = tuple(f"{name}=={importlib.metadata.version(name)}" for name in WHEELS)

    def build(folder: Path) -> None:
        root = _unpacked(folder, PYTHON_PACKAGES)
        version = python_program(root).name.removeprefix("python")
        platforms = [part for platform in _WHEEL_PLATFORMS for part in ("--platform", platform)]
        abis = ["--abi", f"cp{version.replace('.', '')}", "--abi", "abi3", "--abi", "none"]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--only-binary=:all:", "--no-warn-conflicts"]
        target = ["--target", str(folder / "site"), "--python-version", version, "--implementation", "cp"]
        _run([*pip, *target, *abis, *platforms, *wanted])

    folder = _kept(cache, "python", (SUITE, *PYTHON_PACKAGES, *wanted), build)
    return Root(folder / "root", folder / "site")


def java_root(cache: Path) -> Root:
    """Debian's Java runtime.

    Raises:
        EnvironmentFault: see `emulator`.
    """

    def build(folder: Path) -> None:
        _unpacked(folder, JAVA_PACKAGES)

    folder = _kept(cache, "java", (SUITE, *JAVA_PACKAGES), build)
    return Root(folder / "root", folder / "site")


def python_program(root: Path) -> Path:
    """The interpreter in `root`, by the name that says its version."""
    return next(path for path in sorted((root / "usr/bin").glob("python3.*")) if path.name[8:].isdigit())


def java_program(root: Path) -> Path:
    """The `java` in `root`."""
    return next(iter(sorted(root.glob("usr/lib/jvm/java-*-openjdk-arm64/bin/java"))))


def _kept(cache: Path, name: str, parts: Sequence[str], build: Callable[[Path], None]) -> Path:
    """A folder of the cache that `build` has filled, now or earlier, from just these parts."""
    key = hashlib.sha256("\n".join((str(_FORM), *parts)).encode()).hexdigest()[:12]
    place = cache / f"{name}-{key}"
    if place.is_dir():
        return place
    _check_tools()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(cache / f".{name}.lock"):
            if not place.is_dir():
                with tempfile.TemporaryDirectory(prefix=f".{name}.partial-", dir=cache) as scratch:
                    partial = Path(scratch) / name
                    partial.mkdir()
                    build(partial)
                    shutil.rmtree(partial / "apt", ignore_errors=True)
                    partial.rename(place)
    except OSError as error:
        where = error.filename or cache
        hint = f"free some space, or name another folder in {CACHE_VARIABLE}"
        raise EnvironmentFault(f"{where}: {error.strerror or error}", hint) from error
    return place


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time; the system drops the lock of one that dies."""
    deadline = time.monotonic() + _STEP_SECONDS
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise EnvironmentFault(f"{path}: another process has been preparing it for long", "try later") from None
                time.sleep(_POLL_SECONDS)
        yield


def _check_tools() -> None:
    missing = sorted({package for tool, package in _TOOLS.items() if shutil.which(tool) is None})
    if not KEYRING.is_file():
        missing.append("debian-archive-keyring")
    if missing:
        raise EnvironmentFault(f"emulating aarch64 takes packages of Debian that are missing: {', '.join(missing)}", _INSTALL)


def _unpacked(folder: Path, packages: Sequence[str]) -> Path:
    """The root of `packages` and all that they depend on, in `folder`."""
    root = folder / "root"
    for name in ("bin", "lib", "sbin"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for archive in _download(folder, "arm64", packages):
        if not archive.name.startswith("usr-is-merged_"):
            _run(["dpkg-deb", "-x", str(archive), str(root)])
    _make_links_relative(root)
    return root


def _make_links_relative(root: Path) -> None:
    """The system follows a link to an absolute path to this computer's own files, past the root."""
    for parent, folders, files in os.walk(root):
        for path in (Path(parent) / name for name in (*folders, *files)):
            if path.is_symlink() and path.readlink().is_absolute():
                target = root / str(path.readlink()).lstrip("/")
                path.unlink()
                path.symlink_to(os.path.relpath(target, path.parent))


def _download(folder: Path, architecture: str, packages: Sequence[str], *, alone: bool = False) -> list[Path]:
    """Archives of `packages` and, unless `alone`, all that they depend on."""
    apt = folder / "apt"
    for name in ("lists/partial", "cache/archives/partial", "none"):
        (apt / name).mkdir(parents=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(f"deb [signed-by={KEYRING}] {_mirror()} {SUITE} main\n", encoding="utf-8")
    settings = {
        "Dir::State": apt, "Dir::State::lists": apt / "lists", "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache", "Dir::Etc::sourcelist": apt / "sources.list", "Dir::Etc::sourceparts": apt / "none",
        "Dir::Etc::preferences": apt / "none/none", "Dir::Etc::preferencesparts": apt / "none",
        "APT::Architecture": architecture, "APT::Architectures": architecture, "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "", "Acquire::Languages": "none", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
        "Acquire::Retries": "3", "Debug::NoLocking": "true",
    }  # fmt: skip
    options = [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]
    _run(["apt-get", *options, "--quiet", "update"])
    archives = apt / "cache" / "archives"
    if alone:
        _run(["apt-get", *options, "--quiet", "download", *packages], archives)
    else:
        _run(["apt-get", *options, "--quiet", "--yes", "--download-only", "install", *packages])
    return sorted(archives.glob("*.deb"))


def _mirror() -> str:
    """Where this computer gets Debian's packages; a computer that is no Debian is told."""
    named = os.environ.get(MIRROR_VARIABLE)
    if named:
        return named
    found = _output(["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)"]).splitlines()
    uris = [line.split(" ", 2)[2] for line in found if line.startswith("Debian Debian ")]
    if not uris:
        raise EnvironmentFault(
            "apt does not say where Debian's packages are", f"run apt-get update, or name Debian's archive in {MIRROR_VARIABLE}"
        )
    return uris[0]


def _output(command: Sequence[str]) -> str:
    return _run(command).stdout


def _run(command: Sequence[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """One step of preparing, which ends in good time or not at all."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=_STEP_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise EnvironmentFault(f"{command[0]} did not end within {_STEP_SECONDS / 60:.0f} minutes", "try again") from None
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        told = next((line for line in words if line.startswith(("E:", "ERROR:"))), words[-1])
        raise EnvironmentFault(f"preparing aarch64: {Path(command[0]).name} failed: {told}", "is the network there?")
    return done
