"""Writing bundles: what stands there after success, failure, Ctrl-C, kill -9 and a full disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.errors import BundleError, EnvironmentFault, UsageError
from pocketvlm.runtime.bundle import Bundle
from pocketvlm.runtime.manifest import Manifest
from pocketvlm.runtime.manifest_reader import parse_manifest
from pocketvlm.toolchain import atomic
from pocketvlm.toolchain.bundle import BundleWriter, pack

BundleAt = Callable[..., Path]


@pytest.fixture
def source(bundle_at: BundleAt) -> Path:
    """A whole bundle whose content the tests write again."""
    return bundle_at()


def manifest_of(directory: Path) -> Manifest:
    return parse_manifest((directory / "manifest.json").read_text(encoding="utf-8"))


def fill(writer: BundleWriter, source: Path, mark: str = "") -> None:
    for item in manifest_of(source).files:
        writer.copy(source / item.path, item.path)
    writer.write("mark.txt", mark)


def export(source: Path, output: Path, mark: str, error: BaseException | None = None, **options: Any) -> Manifest:
    """Write a bundle; raise `error` before it is committed."""
    with BundleWriter(output, **options) as writer:
        fill(writer, source, mark)
        if error is not None:
            raise error
        return writer.commit(replace(manifest_of(source), files=()))


def mark_of(output: Path) -> str:
    """The mark of the bundle at `output`, which is whole."""
    bundle = Bundle.open(output, verify=True)
    return bundle.path("mark.txt").read_text()


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "out"
    directory.mkdir()
    return directory


def test_the_manifest_lists_what_was_written(source: Path, place: Path) -> None:
    written = export(source, place / "deep" / "bundle", "new")
    assert manifest_of(place / "deep" / "bundle") == written
    for item in written.files:
        content = (place / "deep" / "bundle" / item.path).read_bytes()
        assert (item.bytes, item.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert {item.path for item in written.files} == {item.path for item in manifest_of(source).files} | {"mark.txt"}
    assert names(place / "deep") == {"bundle"}


def test_the_same_content_gives_the_same_bytes(source: Path, place: Path) -> None:
    export(source, place / "one", "same")
    export(source, place / "two", "same")
    for archive in ("one", "two"):
        pack(place / archive, place / f"{archive}.zip")
    assert (place / "one/manifest.json").read_bytes() == (place / "two/manifest.json").read_bytes()
    assert (place / "one.zip").read_bytes() == (place / "two.zip").read_bytes()


def test_a_packed_bundle_is_stored_and_opens(source: Path, place: Path) -> None:
    export(source, place / "bundle", "packed")
    pack(place / "bundle", place / "bundle.zip")
    with zipfile.ZipFile(place / "bundle.zip") as archive:
        assert archive.testzip() is None
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.namelist()[0] == "manifest.json"
    assert mark_of(place / "bundle.zip") == "packed"
    assert names(place) == {"bundle", "bundle.zip"}
    (place / "bundle" / "mark.txt").write_text("damage")
    with pytest.raises(BundleError, match=r"mark\.txt"):
        pack(place / "bundle", place / "other.zip")
    assert names(place) == {"bundle", "bundle.zip"}


@pytest.mark.parametrize("exchange", [True, False])
def test_an_older_bundle_is_replaced(source: Path, place: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    export(source, place / "bundle", "old")
    (place / "link").symlink_to("bundle")
    export(source, place / "link", "new")
    assert mark_of(place / "bundle") == "new"
    assert (place / "link").is_symlink()
    assert names(place) == {"bundle", "link"}


def test_an_empty_directory_is_taken(source: Path, place: Path) -> None:
    (place / "bundle").mkdir()
    export(source, place / "bundle", "new")
    assert mark_of(place / "bundle") == "new"


def test_nothing_but_a_bundle_is_overwritten(source: Path, place: Path) -> None:
    (place / "documents").mkdir()
    (place / "documents" / "thesis.txt").write_text("years of work")
    (place / "file").write_text("")
    export(source, place / "bundle", "old")
    (place / "bundle" / "notes.txt").write_text("mine")
    for name, message in (("documents", "thesis.txt"), ("file", "not a directory"), ("bundle", "notes.txt")):
        with pytest.raises(UsageError, match=message):
            export(source, place / name, "new")
    with pytest.raises(UsageError, match="cannot be a bundle"):
        BundleWriter(Path("/"))
    assert names(place) == {"documents", "file", "bundle"}
    assert (place / "bundle" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("error", [RuntimeError("model"), KeyboardInterrupt()])
def test_a_failure_or_interrupt_leaves_the_old_bundle_alone(source: Path, place: Path, error: BaseException) -> None:
    export(source, place / "bundle", "old")
    with pytest.raises(type(error)):
        export(source, place / "bundle", "new", error)
    assert mark_of(place / "bundle") == "old"
    assert names(place) == {"bundle"}


def test_without_commit_nothing_stays(source: Path, place: Path) -> None:
    with BundleWriter(place / "bundle") as writer:
        fill(writer, source)
    assert names(place) == set()


def test_what_does_not_read_back_is_not_put_in_place(source: Path, place: Path) -> None:
    export(source, place / "bundle", "old")

    def damage(directory: Path) -> None:
        (directory / "mark.txt").write_text("other")
        Bundle.open(directory, verify=True)

    with pytest.raises(BundleError, match=r"mark\.txt"):
        export(source, place / "bundle", "right", verify=damage)
    with BundleWriter(place / "bundle") as writer:
        writer.write("mark.txt", "alone")
        with pytest.raises(BundleError, match="does not list it"):
            writer.commit(manifest_of(source))
    assert mark_of(place / "bundle") == "old"
    assert names(place) == {"bundle"}


def test_names_that_leave_the_bundle_are_refused(place: Path) -> None:
    with BundleWriter(place / "bundle") as writer:
        for name in ("../x", "/x", "a/../../x", ""):
            with pytest.raises(BundleError, match="unsafe"):
                writer.path(name)


def test_two_exports_into_one_output_are_refused(source: Path, place: Path) -> None:
    with BundleWriter(place / "bundle") as first:
        fill(first, source, "first")
        with pytest.raises(EnvironmentFault, match="another export"):
            export(source, place / "bundle", "second")
        export(source, place / "bundle-2", "beside")
        first.commit(manifest_of(source))
    assert mark_of(place / "bundle") == "first"
    assert names(place) == {"bundle", "bundle-2"}


KILLED = textwrap.dedent(
    """
    import os, shutil, signal, sys
    from dataclasses import replace
    from pathlib import Path
    from pocketvlm.runtime.manifest_reader import parse_manifest
    from pocketvlm.toolchain import atomic, bundle

    source, output, point = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

    def die(*arguments, **options):
        os.kill(os.getpid(), signal.SIGKILL)

    def die_before(owner, name):
        setattr(owner, name, die)

    def die_after(owner, name, calls=1):
        original, made = getattr(owner, name), []
        def call(*arguments, **options):
            result = original(*arguments, **options)
            made.append(1)
            if len(made) == calls:
                die()
            return result
        setattr(owner, name, call)

    if point.startswith("rename"):
        atomic._exchange = lambda first, second: False
    if point == "hashing":
        die_before(bundle, "dump_manifest")
    elif point == "verifying":
        die_before(bundle, "read_back")
    elif point == "swapping":
        die_before(bundle, "replace_directory")
    elif point == "swapped":
        die_after(atomic, "_exchange")
    elif point == "rename-1":
        die_after(Path, "rename")
    elif point == "rename-2":
        die_after(Path, "rename", 2)
    manifest = parse_manifest((source / "manifest.json").read_text())
    with bundle.BundleWriter(output, verify=lambda place: bundle.read_back(place)) as writer:
        if point == "started":
            die()
        for item in manifest.files:
            writer.copy(source / item.path, item.path)
        writer.write("mark.txt", "new")
        if point == "written":
            die()
        writer.commit(replace(manifest, files=()))
    """
)


@pytest.mark.parametrize(
    ("point", "survivor"),
    [
        ("started", "old"),
        ("written", "old"),
        ("hashing", "old"),
        ("verifying", "old"),
        ("swapping", "old"),
        ("swapped", "new"),
        ("rename-1", None),
        ("rename-2", "new"),
    ],
)
def test_kill_9_leaves_a_usable_bundle_and_the_next_export_clears_up(
    source: Path, place: Path, point: str, survivor: str | None
) -> None:
    output = place / "bundle"
    export(source, output, "old")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(source), str(output), point], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert len(names(place)) > 1
    if survivor is not None:
        assert mark_of(output) == survivor
        # A failing export clears up just as well.
        with pytest.raises(RuntimeError), BundleWriter(output):
            raise RuntimeError
        assert mark_of(output) == survivor
    else:
        # Between two renames, where names cannot be exchanged: the next export gives the old bundle back.
        assert not output.exists()
        with BundleWriter(output):
            assert mark_of(output) == "old"
    assert names(place) == {"bundle"}
    export(source, output, "newest")
    assert mark_of(output) == "newest"
    assert names(place) == {"bundle"}


def test_what_somebody_puts_there_meanwhile_is_not_deleted(source: Path, place: Path) -> None:
    output = place / "bundle"
    export(source, output, "old")
    with BundleWriter(output) as writer:
        fill(writer, source, "new")
        (output / "notes.txt").write_text("mine")
        with pytest.raises(UsageError, match=r"notes\.txt"):
            writer.commit(replace(manifest_of(source), files=()))
    assert (output / "notes.txt").read_text() == "mine"
    assert (output / "mark.txt").read_text() == "old"
    assert names(place) == {"bundle"}


def test_leftovers_need_not_be_directories(source: Path, place: Path) -> None:
    kept = place / "kept"
    kept.mkdir()
    (kept / "file").write_text("mine")
    (place / ".bundle.partial-1").symlink_to(kept)
    (place / ".bundle.partial-2").write_text("")
    (place / ".bundle.previous").write_text("")
    export(source, place / "bundle", "new")
    assert (kept / "file").read_text() == "mine"
    assert names(place) == {"bundle", "kept"}


def test_leftovers_of_other_outputs_stay(source: Path, place: Path) -> None:
    for name in (".other.partial-1", ".bundle.partial-x", ".bundle-2.partial-1", ".bundle.partial-1"):
        (place / name).mkdir()
    export(source, place / "bundle", "new")
    assert names(place) == {"bundle", ".other.partial-1", ".bundle.partial-x", ".bundle-2.partial-1"}


def test_an_interrupt_between_two_renames_gives_the_old_bundle_back(
    source: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(source, place / "bundle", "old")
    monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name.startswith(".bundle.partial-"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(source, place / "bundle", "new")
    assert mark_of(place / "bundle") == "old"
    assert names(place) == {"bundle"}


@contextlib.contextmanager
def small_disk(directory: Path, size: int) -> Iterator[None]:
    """A filesystem of `size` bytes at `directory` or, where mounting is not allowed, a limit on files of that size."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    if shutil.which("mount") and subprocess.run(mount, check=False, capture_output=True).returncode == 0:
        try:
            yield
        finally:
            subprocess.run(["umount", str(directory)], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_reported_and_leaves_the_old_bundle_alone(
    source: Path, bundle_at: BundleAt, contract: Any, place: Path
) -> None:
    big = bundle_at()
    (big / "weights.bin").write_bytes(bytes(range(256)) * 8192)
    contract.write_manifest(big, manifest_of(big))
    with small_disk(place, 1 << 20):
        export(source, place / "bundle", "old")
        with pytest.raises(EnvironmentFault, match=r"not enough disk space: .*, \d+ bytes are free"):
            export(big, place / "bundle", "new")
        assert mark_of(place / "bundle") == "old"
        assert names(place) == {"bundle"}


def test_too_small_a_disk_is_refused_before_anything_is_written(place: Path) -> None:
    with pytest.raises(EnvironmentFault, match=f"needs about {1 << 60} bytes"):
        BundleWriter(place / "bundle", 1 << 60).__enter__()
    assert names(place) == set()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "x"),
        OSError(errno.EDQUOT, "x"),
        RuntimeError(f"engine: {os.strerror(errno.ENOSPC)}"),
        OSError("4096 requested and 2048 written"),
    ],
)
def test_a_full_disk_is_recognised_in_other_libraries_errors(source: Path, place: Path, error: Exception) -> None:
    wrapped = ValueError("wrapped")
    wrapped.__cause__ = error
    with pytest.raises(EnvironmentFault, match="needs about 5 bytes"):
        export(source, place / "bundle", "new", wrapped, estimated_bytes=5)
    assert names(place) == set()


def test_an_output_that_cannot_be_written_is_no_bug(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(output: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(output))

    monkeypatch.chdir(place)
    monkeypatch.setattr("pocketvlm.toolchain.bundle.OutputLock", refuse)
    with pytest.raises(EnvironmentFault, match=r"^bundle: cannot be written: Permission denied"):
        BundleWriter(Path("bundle")).__enter__()


def test_an_output_that_is_no_place_is_named_as_it_was_given(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    Path("file").write_text("")
    Path("folder").mkdir()
    Path("folder/mine").write_text("")
    for output, told in (
        ("file", "file: exists and is not a directory"),
        ("folder", "folder: exists and holds mine, which"),
        ("file/b/c", "file/b/c: file is a file, not a folder"),
    ):
        with pytest.raises(UsageError, match=f"^{told}"):
            BundleWriter(Path(output))
