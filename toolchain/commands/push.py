"""`pocketvlm push`"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from rich.filesize import decimal

from pocketvlm.toolchain.commands.output import print_json, print_line
from pocketvlm.toolchain.devices import ability
from pocketvlm.toolchain.devices.pushing import PushReport
from pocketvlm.toolchain.progress import RichProgress


def push(bundle: Path, device: str, directory: str | None, as_json: bool) -> None:
    """Copy a bundle to a device, and print where it is and what travelled.

    Raises:
        PocketVLMError: see the `push` of the device's module.
    """
    copy, address = ability(device, "push")
    with RichProgress() as progress:
        report: PushReport = copy(address, bundle, directory, progress)
    if as_json:
        print_json(asdict(report))
        return
    rate = "" if report.mb_per_s is None else f" ({report.mb_per_s:.1f} MB/s)"
    removed = f", {report.files_removed} of an older one removed" if report.files_removed else ""
    print_line(
        f"{report.device}:{report.directory}: {report.files_sent} files sent, {decimal(report.bytes_sent)}{rate}; "
        f"{report.files_kept} were there{removed}; {report.seconds:.1f} s"
    )
