"""Puts a bundle on a device, so that whoever opens it there finds the whole bundle or none.

A bundle is open to a reader when it has `manifest.json`. So that is renamed to `manifest.json.part` before anything in the
folder changes, everything else is sent, and the new manifest comes last. The parked name also says whose work it is that was
interrupted: a folder with other things in it is refused, and nothing of it removed.
"""

from __future__ import annotations

import re
import time
from dataclasses import replace

from pocketvlm.errors import EnvironmentFault
from pocketvlm.runtime.bundle import Bundle
from pocketvlm.runtime.manifest import MANIFEST_HASH_NAME, MANIFEST_NAME
from pocketvlm.toolchain.devices.adb import Adb
from pocketvlm.toolchain.devices.pushing import (
    PART,
    Folder,
    Item,
    PushReport,
    apply,
    check_directory,
    check_space,
    compare,
)
from pocketvlm.toolchain.progress import Progress

ROOT = "/data/local/tmp/pocketvlm"
_PARKED = MANIFEST_NAME + PART
# Whatever stands in their places, the one is a file afterwards and the other is not there.
_PARK = f"""
if [ -f {MANIFEST_NAME} ] && [ ! -L {MANIFEST_NAME} ]; then rm -rf {_PARKED} && mv -f {MANIFEST_NAME} {_PARKED}
else rm -rf {MANIFEST_NAME}; [ -f {_PARKED} ] || {{ rm -rf {_PARKED}; : > {_PARKED}; }}
fi
"""


def default_directory(bundle: Bundle) -> str:
    """Where a bundle goes unless a place is given: a folder with its name."""
    name = re.split(r"[/\\]", bundle.name.rstrip("/\\"))[-1].removesuffix(".zip")
    if name in ("", ".", ".."):
        name = bundle.directory.resolve().name
    # Names that begin with a dot are ours.
    return f"{ROOT}/{re.sub(r'[^A-Za-z0-9._+-]+', '-', name).lstrip('.-') or 'bundle'}"


def push_bundle(adb: Adb, bundle: Bundle, directory: str | None, progress: Progress) -> PushReport:
    """Make a folder on the device hold this bundle and nothing else.

    Args:
        bundle: opened, hence whole.
        directory: absolute path; `default_directory` unless given.

    Raises:
        UsageError: a path that can be none.
        EnvironmentFault: the folder holds something else, cannot be written or is too small, or the device has gone. What has
            arrived by then is not sent again by the next push.
    """
    start = time.monotonic()
    folder = Folder(adb, check_directory(default_directory(bundle) if directory is None else directory))
    items = [Item(item.path, bundle.directory / item.path, item.bytes, item.sha256) for item in bundle.manifest.files]
    items.append(Item.of(MANIFEST_HASH_NAME, bundle.directory / MANIFEST_HASH_NAME))
    manifest = Item.of(MANIFEST_NAME, bundle.directory / MANIFEST_NAME)
    folder.make()
    _check_owner(folder)
    progress.stage(f"compare with {folder}", 1)
    difference = compare(folder, [*items, manifest], parked=_PARKED)
    check_space(folder, difference)
    seconds = 0.0
    if difference.empty:
        folder.remove([_PARKED])
    else:
        folder.run(_PARK, "the old manifest to be renamed")
        last = [replace(item, name=_PARKED) for item in difference.missing if item is manifest]
        first = [item for item in difference.missing if item is not manifest]
        seconds = apply(folder, replace(difference, missing=(*first, *last)), progress)
        folder.run(f"mv -f {_PARKED} {MANIFEST_NAME}", "the manifest to be renamed")
    sent = sum(item.bytes for item in difference.missing)
    return PushReport(
        device=adb.serial,
        directory=folder.path,
        files_sent=len(difference.missing),
        files_kept=len(difference.kept),
        files_removed=len(difference.surplus),
        bytes_sent=sent,
        bytes_kept=sum(item.bytes for item in difference.kept),
        seconds=time.monotonic() - start,
        mb_per_s=sent / 1e6 / seconds if seconds else None,
    )


def _check_owner(folder: Folder) -> None:
    """Refuse a folder that holds something else than a bundle: what is surplus in it will be removed."""
    script = (
        f"""[ -e {_PARKED} ] || [ -e {MANIFEST_HASH_NAME} ] || [ -z "$(ls -A)" ] || grep -q '"pocketvlm"' {MANIFEST_NAME}"""
    )
    if folder.run(f"{script} 2>/dev/null", "what it holds", refuse=False).code:
        raise EnvironmentFault(f"{folder} holds something else than a bundle", "choose another folder with --to, or empty it")
