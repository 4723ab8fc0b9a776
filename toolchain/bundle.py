"""Writes a bundle: beside its place, verified, then put there in one step."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from pocketvlm.errors import EnvironmentFault, UsageError
from pocketvlm.runtime.bundle import Bundle
from pocketvlm.runtime.manifest import (
    MANIFEST_HASH_NAME,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    FileSpec,
    Manifest,
    dump_manifest,
    manifest_hash,
)
from pocketvlm.runtime.manifest_reader import check_relative_path, parse_manifest
from pocketvlm.toolchain.atomic import OutputLock, check_folders, partial_path, recover, replace_directory, sync_directory
from pocketvlm.toolchain.disk import FULL, full_error

_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written\Z")
_BLOCK = 1 << 20
# Zip's earliest time: an archive depends on the bundle's content alone.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


def read_back(directory: Path) -> None:
    """Open a bundle the way a runtime does, every hash checked.

    Raises:
        BundleError: what was written is not what was meant.
    """
    Bundle.open(directory, verify=True).close()


class BundleWriter:
    """Context manager around the making of one bundle.

        with BundleWriter(output, estimated_bytes) as writer:
            model.save(writer.path("ort-cpu/decoder.onnx"))
            writer.write("report.json", report)
            writer.commit(manifest)

    Until `commit` returns, `output` is untouched, also when this process is killed. Without `commit` nothing stays.

    Attributes:
        directory: where the files are written meanwhile; the names in a manifest are relative to it.

    Args:
        output: the bundle's directory. If it exists it must be a bundle, or empty.
        estimated_bytes: what will be written; checked against the free space beforehand.
        verify: reads the written directory back before it is put in place.

    Raises:
        UsageError: `output` is a file, or a directory that is no bundle.
        EnvironmentFault: another export writes the same output, or there is not enough space, which may also show in the
            body of the `with` statement.
    """

    def __init__(self, output: Path, estimated_bytes: int = 0, *, verify: Callable[[Path], None] = read_back) -> None:
        check_replaceable(output)
        self._given = output
        # A link to a bundle stays a link.
        self.output = output.resolve()
        self._estimate = estimated_bytes
        self._verify = verify
        self.directory = partial_path(self.output)
        self._stack = ExitStack()

    def __enter__(self) -> BundleWriter:
        with self._stack:
            self._stack.enter_context(self._disk_errors())
            try:
                self._prepare()
            except OSError as error:
                if _is_disk_full(error):
                    raise
                raise EnvironmentFault(
                    f"{self._given}: cannot be written: {error.strerror or error}",
                    "choose another output, or check its permissions",
                ) from error
            self._stack = self._stack.pop_all()
        return self

    def _prepare(self) -> None:
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self._stack.enter_context(OutputLock(self.output))
        recover(self.output)
        check_replaceable(self.output)
        free = shutil.disk_usage(self.output.parent).free
        if self._estimate > free:
            raise self._no_space(free)
        self._stack.callback(recover, self.output)
        self.directory.mkdir()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)

    def path(self, name: str) -> Path:
        """Where to write the bundle's file `name` ("ort-cpu/decoder.onnx"); its folder exists.

        Raises:
            BundleError: the name would leave the bundle.
        """
        check_relative_path(name)
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def folder(self, name: str) -> Path:
        """The bundle's folder `name`, made when needed.

        Raises:
            BundleError: the name would leave the bundle.
        """
        return self.path(f"{name}/_").parent

    def write(self, name: str, content: str | bytes) -> None:
        """Write the file `name`; text as UTF-8."""
        self.path(name).write_bytes(content.encode("utf-8") if isinstance(content, str) else content)

    def copy(self, source: Path, name: str) -> None:
        """Copy a file's content (a link's target, not the link) to the bundle's file `name`."""
        shutil.copyfile(source, self.path(name))

    def commit(self, manifest: Manifest) -> Manifest:
        """Hash all files, write the manifest with them, read everything back, and put the bundle in its place.

        Args:
            manifest: its `files` are replaced by those that were written.

        Returns:
            The manifest as it stands in the bundle.

        Raises:
            BundleError: the manifest does not fit the files.
        """
        complete = replace(manifest, files=tuple(_list_files(self.directory)))
        text = dump_manifest(complete)
        parse_manifest(text)
        for name, line in ((MANIFEST_NAME, text), (MANIFEST_HASH_NAME, manifest_hash(text.encode("utf-8")))):
            with self.path(name).open("w", encoding="utf-8", newline="\n") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        for folder, _, _ in os.walk(self.directory):
            sync_directory(Path(folder))
        self._verify(self.directory)
        # Hours may have gone by: what somebody has put there since must not be deleted.
        check_replaceable(self.output)
        replace_directory(self.directory, self.output)
        return complete

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Turn a full disk, in whatever library it shows, into one clear error. Outermost: files are gone by then."""
        try:
            yield
        except Exception as error:
            if not _is_disk_full(error):
                raise
            raise self._no_space(_free_bytes(self.output.parent)) from error

    def _no_space(self, free: int) -> EnvironmentFault:
        needed = f"the bundle needs about {self._estimate} bytes" if self._estimate else "the bundle does not fit"
        return EnvironmentFault(
            f"{self.output.parent}: not enough disk space: {needed}, {free} bytes are free",
            "free some space, or choose another output",
        )


def pack(directory: Path, archive: Path) -> None:
    """Pack a bundle into one uncompressed zip. The same bundle always gives the same bytes.

    Raises:
        BundleError: the directory is not an intact bundle.
        EnvironmentFault: the archive cannot be written.
    """
    bundle = Bundle.open(directory, verify=True)
    names = [MANIFEST_NAME, MANIFEST_HASH_NAME, *sorted(item.path for item in bundle.manifest.files)]
    partial = partial_path(archive)
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as target:
            for name in names:
                entry = zipfile.ZipInfo(name, _ZIP_TIME)
                entry.create_system = 3
                entry.external_attr = 0o100644 << 16
                entry.file_size = (directory / name).stat().st_size
                with (directory / name).open("rb") as source, target.open(entry, "w") as copy:
                    shutil.copyfileobj(source, copy, _BLOCK)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(archive)
        sync_directory(archive.absolute().parent)
    except OSError as error:
        raise EnvironmentFault(
            f"{archive}: cannot be written: {error.strerror}", "check the folder and the free space"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _list_files(directory: Path) -> Iterator[FileSpec]:
    """Every file below `directory`, hashed and on disk, in the order of their paths."""
    for path in sorted(item for item in directory.rglob("*") if item.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        yield FileSpec(path.relative_to(directory).as_posix(), size, digest)


def check_replaceable(output: Path) -> None:
    """Refuse to delete anything that is not a bundle of ours, with nothing of the user's in it.

    Raises:
        UsageError: `output` is such a thing, or no place for a bundle.
    """
    check_folders(output)
    if not output.resolve().name:
        raise UsageError(f"{output}: cannot be a bundle's directory", "choose another output")
    if not output.exists():
        return
    if not output.is_dir():
        raise UsageError(f"{output}: exists and is not a directory", "choose another output")
    own = _manifest_files(output)
    for item in output.rglob("*"):
        name = item.relative_to(output).as_posix()
        if name not in own and (item.is_symlink() or not item.is_dir()):
            raise UsageError(
                f"{output}: exists and holds {name}, which is not part of a bundle",
                "choose another output, or remove it yourself",
            )


def _manifest_files(output: Path) -> set[str]:
    """What the manifest of a bundle, of any version, lists; empty if there is none."""
    try:
        with (output / MANIFEST_NAME).open("rb") as file:
            raw = json.loads(file.read(MAX_MANIFEST_BYTES))
        return {MANIFEST_NAME, MANIFEST_HASH_NAME, *(item["path"] for item in raw["files"] if raw["schema"]["major"] >= 1)}
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return set()


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(path if path.exists() else path.anchor).free


def _is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        # Libraries in C++ raise their own kinds, with the system's words; numpy's tofile counts what it could write.
        if full_error(str(error)) is not None or _SHORT_WRITE.match(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
