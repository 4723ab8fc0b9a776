"""Phones and emulators, through adb."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pocketvlm.errors import EnvironmentFault
from pocketvlm.runtime.bundle import Bundle
from pocketvlm.runtime.image import load_image
from pocketvlm.runtime.manifest import DeviceSpec
from pocketvlm.toolchain.devices.adb import Adb
from pocketvlm.toolchain.devices.bundle_pushing import ROOT, push_bundle
from pocketvlm.toolchain.devices.examination import examine
from pocketvlm.toolchain.devices.properties import Condition, Identity, read_condition, read_identity
from pocketvlm.toolchain.devices.pushing import Folder, Item, PushReport, push_files
from pocketvlm.toolchain.devices.remote_bench import Place, check_idle, run_remote
from pocketvlm.toolchain.devices.report import BenchJob, BenchReport
from pocketvlm.toolchain.devices.runner_files import ABIS, RUNNER_NAME, RunnerFiles, find_runner_files, unpack_libraries
from pocketvlm.toolchain.devices.selection import choose_device
from pocketvlm.toolchain.progress import Progress

# Bundles are beside these, and no bundle's name begins with a dot.
_PLACE = Place(f"{ROOT}/.runner", f"{ROOT}/.run")
__all__ = ["bench", "examine", "push"]

_EMULATOR = "an emulator's latency says nothing about a phone"


def push(address: str | None, bundle: Path, directory: str | None, progress: Progress) -> PushReport:
    """Copy a bundle to a device; what is there already does not travel.

    Raises:
        PocketVLMError: see `Bundle.open`, `choose_device` and `push_bundle`.
    """
    opened = Bundle.open(bundle)
    try:
        return push_bundle(choose_device(address), opened, directory, progress)
    finally:
        opened.close()


def bench(address: str | None, job: BenchJob, progress: Progress) -> BenchReport:
    """Push everything that is missing, and measure.

    Raises:
        PocketVLMError: what cannot be used here, before anything is sent; see `push_bundle` and `run_remote`.
    """
    bundle = Bundle.open(job.bundle)
    try:
        if job.image is not None:
            load_image(job.image, bundle.manifest.image)
        needed = _needed(bundle, job.target)
        files = find_runner_files(job.runner, job.onnxruntime_android)
        adb = choose_device(address)
        identity = read_identity(adb)
        _check_soc(identity, needed)
        abi = _choose_abi(identity)
        check_idle(adb, _PLACE)
        pushed = push_bundle(adb, bundle, None, progress)
        image = _push_runner(adb, abi, files, job.image, progress)
    finally:
        bundle.close()
    before = read_condition(adb)
    progress.stage(f"measure on {identity.name}", 1)
    report = run_remote(adb, _PLACE, pushed.directory, image, job, progress)
    return _with_device(report, job, identity, before, read_condition(adb))


def _needed(bundle: Bundle, target: str | None) -> list[DeviceSpec]:
    """The devices that the asked variants were compiled for.

    Raises:
        UsageError: the bundle has no such variant.
    """
    if target is None:
        return []
    found = [bundle.find_variant(part).device for part in target.split("+")]
    return [device for device in found if device is not None]


def _check_soc(identity: Identity, needed: list[DeviceSpec]) -> None:
    for device in needed:
        here = identity.soc_model
        if here != device.soc:
            raise EnvironmentFault(
                f"the bundle was compiled for {device.soc}; {identity.name} has {here or 'a SoC that it does not name'}",
                f"export it for {f'qnn:{here}' if here else 'this SoC'} or ort-cpu",
            )


def _choose_abi(identity: Identity) -> str:
    abi = identity.abi(ABIS)
    if abi is None:
        told = ", ".join(identity.abis) or "that it does not name"
        raise EnvironmentFault(
            f"{identity.name} has instruction sets {told}; the runtime exists for {' and '.join(ABIS)}", "take another device"
        )
    return abi


def _push_runner(adb: Adb, abi: str, files: RunnerFiles, image: Path | None, progress: Progress) -> str | None:
    """Put the runtime, its libraries and the picture on the device; where the picture is there."""
    folder = Folder(adb, _PLACE.runner)
    with tempfile.TemporaryDirectory(prefix="pocketvlm-") as temporary:
        libraries = unpack_libraries(files.onnxruntime, abi, Path(temporary))
        items = [Item.of(RUNNER_NAME, files.runner), *(Item.of(f"lib/{path.name}", path) for path in libraries)]
        name = None
        if image is not None:
            # A name that the user chose may be anything.
            kind = ".jpg" if image.suffix.lower() in (".jpg", ".jpeg") else ".png"
            name = f"images/{hashlib.sha256(image.read_bytes()).hexdigest()}{kind}"
            items.append(Item.of(name, image))
        push_files(folder, items, progress)
    return None if name is None else f"{folder.path}/{name}"


def _with_device(report: BenchReport, job: BenchJob, identity: Identity, before: Condition, after: Condition) -> BenchReport:
    remarks = [f"device: {identity.name}, {identity.system}"]
    if report.runtime is not None:
        remarks.append(f"runtime: {report.runtime.name} {report.runtime.version}, ONNX Runtime {report.runtime.onnxruntime}")
    remarks += [f"before: {before}", f"after: {after}"]
    note = report.note
    if identity.emulator:
        note = f"{_EMULATOR}; {note}"
    device: dict[str, Any] = {"kind": "adb", "name": identity.name, **asdict(identity)}
    device |= {"before": asdict(before), "after": asdict(after)}
    return replace(report, settings=job.settings, note=note, device=device, remarks=tuple(remarks))
