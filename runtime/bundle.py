"""Opens a bundle and proves that it is whole before anything of it is loaded.

A bundle is a directory, or one uncompressed zip of it. Weights are memory-mapped by the engines from real files, so a zip
is unpacked to a temporary directory, which `Bundle.close` removes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import weakref
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pocketvlm.errors import BundleError, EnvironmentFault, UsageError
from pocketvlm.runtime import decoder_contract, vision_contract
from pocketvlm.runtime.devices import check_device, check_runs_here
from pocketvlm.runtime.engines.qnn_provider import emulated
from pocketvlm.runtime.manifest import (
    MANIFEST_HASH_NAME,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    FileSpec,
    Manifest,
    VariantSpec,
    manifest_hash,
)
from pocketvlm.runtime.manifest_reader import check_relative_path, parse_manifest
from pocketvlm.runtime.placement import check_stages, place

_COPY_AGAIN = "copy the bundle again or export it again"
_BLOCK = 1 << 20
_HASH_THREADS = 4
_MAX_ENTRIES = 10_000


class Bundle:
    """A bundle on disk whose files are those that its manifest lists. Use `Bundle.open`.

    Attributes:
        directory: where the files are.
        manifest: what `manifest.json` says.
        name: what messages call it: the path that it was opened by.
    """

    def __init__(self, directory: Path, manifest: Manifest, *, name: str | None = None, temporary: bool = False) -> None:
        self.directory = directory
        self.manifest = manifest
        self.name = str(directory) if name is None else name
        self._remove = weakref.finalize(self, _remove, directory) if temporary else None

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
        """Open a bundle directory or zip.

        Args:
            verify: compare every file's sha256 with the manifest. The manifest's own hash, presence, sizes and surplus
                files are always checked.

        Raises:
            BundleError: not a bundle, damaged, incomplete, with surplus files, links or unsafe paths, or of a newer schema.
            EnvironmentFault: no room to unpack a zip.
        """
        place = Path(path)
        if place.is_dir():
            with _named(str(place)):
                return cls(place, _check_directory(place, verify))
        if not place.exists():
            raise BundleError(f"{place}: no such bundle", "give the directory that `pocketvlm export` wrote")
        if not place.is_file() or not zipfile.is_zipfile(place):
            raise BundleError(
                f"{place}: neither a bundle directory nor a whole zip", "give the directory that `pocketvlm export` wrote"
            )
        directory = Path(tempfile.mkdtemp(prefix="pocketvlm-"))
        try:
            with _named(str(place)):
                _unpack(place, directory)
                return cls(directory, _check_directory(directory, verify), name=str(place), temporary=True)
        except BaseException:
            _remove(directory)
            raise

    def variant(self, target: str | None = None) -> VariantSpec:
        """The variant for a target or of that name; without one, the first that this machine is made for.

        Args:
            target: "qnn:SM8750+ort-cpu" takes the vision stages of the former and the language model of the latter. A variant
                for a device that is only emulated here is taken when it is asked for.

        Raises:
            UsageError: the bundle has no such variant.
            EnvironmentFault: none of its engines runs here, or the variant was compiled for another device.
            BundleError: a stage is missing or not known, or the vision stages do not fit the manifest.
        """
        with self.named():
            if target is None:
                chosen = self._first()
                check_stages(chosen)
            else:
                vision_target, both, decoder_target = target.partition("+")
                if not both:
                    decoder_target = vision_target
                chosen = self._placed(self.find_variant(vision_target), self.find_variant(decoder_target))
            vision_contract.check_sizes(self.manifest, chosen)
        return chosen

    def named(self) -> AbstractContextManager[None]:
        """Within the body, what is wrong with the bundle is told with its name, and files by their place in it."""
        return _named(self.name)

    def _placed(self, vision: VariantSpec, decoder: VariantSpec) -> VariantSpec:
        for half in (vision, decoder):
            check_stages(half)
        check_device(vision, vision_contract.stage_names(vision))
        try:
            check_device(decoder, decoder_contract.stage_names(decoder))
        except EnvironmentFault as error:
            raise EnvironmentFault(error.message, self._instead(vision) + error.hint) from error
        return place(vision, decoder)

    def _instead(self, vision: VariantSpec) -> str:
        """Which target has these vision stages and a language model that runs here, for a hint; empty if none has."""
        for other in self.manifest.variants:
            if _runs_here(other, decoder_contract.stage_names(other)):
                target = other.target if other is vision else f"{vision.target}+{other.target}"
                return f"target {target} runs here, with the language model of {other.target}; or "
        return ""

    def find_variant(self, target: str) -> VariantSpec:
        """The variant for a target or of that name, whether or not it runs here.

        Raises:
            UsageError: the bundle has no such variant.
        """
        variants = self.manifest.variants
        for variant in variants:
            if target in (variant.name, variant.target):
                return variant
        known = ", ".join(dict.fromkeys(variant.target for variant in variants))
        raise UsageError(f"the bundle has no variant for {target!r}", f"it has {known}")

    def _first(self) -> VariantSpec:
        reasons, hints = [], []
        for variant in self.manifest.variants:
            try:
                check_runs_here(variant, variant.stages)
            except (BundleError, EnvironmentFault) as error:
                reasons.append(f"{variant.name}: {error.message}")
                hints.append(error.hint)
                continue
            if variant.device is None or not emulated():
                return variant
            reasons.append(f"{variant.name}: {variant.device.soc} is only emulated here")
            hints.append(f"target {variant.target} asks for the emulation, which takes minutes for an answer")
        known = dict.fromkeys(hint for hint in hints if hint)
        raise EnvironmentFault(
            f"no variant of the bundle runs here: {'; '.join(reasons)}",
            ", or ".join([*known, "export the checkpoint for ort-cpu, which runs anywhere"]),
        )

    def path(self, name: str) -> Path:
        """Full path of a file that the manifest lists.

        Raises:
            BundleError: it lists no such file.
        """
        if all(item.path != name for item in self.manifest.files):
            raise BundleError(f"{self.name}: manifest.json does not list {name!r}", _COPY_AGAIN)
        return self.directory / name

    def sha256(self, name: str) -> str:
        """Hash of a file that the manifest lists, as the manifest says."""
        return next(item.sha256 for item in self.manifest.files if item.path == name)

    def close(self) -> None:
        """Remove what was unpacked from a zip; a directory stays as it is."""
        if self._remove is not None:
            self._remove()


def _runs_here(variant: VariantSpec, stages: Iterable[str]) -> bool:
    try:
        check_runs_here(variant, stages)
    except (BundleError, EnvironmentFault):
        return False
    return True


@contextmanager
def _named(bundle: str) -> Iterator[None]:
    try:
        yield
    except BundleError as error:
        if error.message.startswith(f"{bundle}: "):
            raise
        raise BundleError(f"{bundle}: {error.message}", error.hint) from error


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)


def _check_directory(directory: Path, verify: bool) -> Manifest:
    manifest = _read_manifest(directory)
    expected = {item.path: item for item in manifest.files}
    found = dict(_walk(directory))
    for name in (MANIFEST_NAME, MANIFEST_HASH_NAME):
        found.pop(name, None)
    for name, item in expected.items():
        if name not in found:
            raise BundleError(f"{name}: missing from the bundle", _COPY_AGAIN)
        if found[name] != item.bytes:
            raise BundleError(f"{name}: {found[name]} bytes, the manifest says {item.bytes}", _COPY_AGAIN)
    surplus = sorted(found.keys() - expected.keys())
    if surplus:
        raise BundleError(f"{surplus[0]}: not part of the bundle", "remove it, or export the bundle again")
    if verify:
        _check_hashes(directory, manifest.files)
    return manifest


def _read_manifest(directory: Path) -> Manifest:
    path = directory / MANIFEST_NAME
    content = _read_small(path)
    if content is None:
        raise BundleError(f"no {MANIFEST_NAME}", "give the directory that `pocketvlm export` wrote")
    hashed = _read_small(directory / MANIFEST_HASH_NAME)
    if hashed is None:
        raise BundleError(f"{MANIFEST_HASH_NAME}: missing from the bundle", _COPY_AGAIN)
    if len(content) <= MAX_MANIFEST_BYTES and hashed != manifest_hash(content).encode():
        raise BundleError(f"{MANIFEST_NAME}: sha256 differs from {MANIFEST_HASH_NAME}: the file is damaged", _COPY_AGAIN)
    try:
        return parse_manifest(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise BundleError(f"{MANIFEST_NAME}: not UTF-8 text", _COPY_AGAIN) from None


def _read_small(path: Path) -> bytes | None:
    """The content of a regular file, one byte more than a manifest may have at the most; None without the file."""
    # Neither followed nor waited for: a link may lead out of the bundle, and a pipe never ends.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if path.is_symlink():
            raise BundleError(f"{path.name}: a link, not a file", _COPY_AGAIN)
        with os.fdopen(os.open(path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BundleError(f"{path.name}: neither a file nor a folder", _COPY_AGAIN)
            return file.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"{path.name}: cannot be read: {error.strerror}", _COPY_AGAIN) from error


def _walk(directory: Path) -> Iterator[tuple[str, int]]:
    """Relative path and size of every file; links and special files are refused."""
    pending = [directory]
    while pending:
        folder = pending.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            where = folder.relative_to(directory).as_posix()
            raise BundleError(f"{where}: cannot be read: {error.strerror}", _COPY_AGAIN) from error
        for entry in entries:
            name = Path(entry.path).relative_to(directory).as_posix()
            if entry.is_symlink():
                raise BundleError(f"{name}: a link; a bundle holds only files and folders", _COPY_AGAIN)
            if entry.is_dir():
                pending.append(Path(entry.path))
            elif entry.is_file():
                yield name, entry.stat().st_size
            else:
                raise BundleError(f"{name}: neither a file nor a folder", _COPY_AGAIN)


def _check_hashes(directory: Path, files: tuple[FileSpec, ...]) -> None:
    def check(item: FileSpec) -> None:
        try:
            with (directory / item.path).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise BundleError(f"{item.path}: cannot be read: {error.strerror}", _COPY_AGAIN) from error
        if found != item.sha256:
            raise BundleError(f"{item.path}: sha256 differs from the manifest: the file is damaged", _COPY_AGAIN)

    # hashlib releases the interpreter lock, so threads help.
    with ThreadPoolExecutor(min(_HASH_THREADS, max(1, len(files)))) as pool:
        list(pool.map(check, files))


def _unpack(archive: Path, directory: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            _check_entries(archive, entries)
            for entry in entries:
                target = directory / entry.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(entry) as source, target.open("xb") as copy:
                    _copy(source, copy)  # type: ignore[arg-type]
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise BundleError(f"damaged zip: {error}", _COPY_AGAIN) from error
    except OSError as error:
        raise EnvironmentFault(
            f"{archive}: cannot be unpacked to {directory}: {error.strerror}", "free some space, or unpack it yourself"
        ) from error


def _check_entries(archive: Path, entries: list[zipfile.ZipInfo]) -> None:
    names = {entry.filename for entry in entries}
    if len(entries) > _MAX_ENTRIES or len(names) != len(entries):
        raise BundleError("too many or repeated entries", "it is not one of ours")
    for entry in entries:
        check_relative_path(entry.filename, "the zip")
        for folder in PurePosixPath(entry.filename).parents:
            if str(folder) in names:
                raise BundleError(f"{folder} is a file and a folder", "it is not one of ours")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise BundleError(f"{entry.filename} is a link or special file", "it is not one of ours")
        # Stored entries cannot unpack to more than the archive itself.
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or entry.flag_bits & 1:
            raise BundleError(f"{entry.filename} is compressed or encrypted", "pack the bundle without compression")
    if sum(entry.file_size for entry in entries) > archive.stat().st_size:
        raise BundleError("entries overlap", "it is not one of ours")


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    while block := source.read(_BLOCK):
        target.write(block)
