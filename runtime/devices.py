"""Whether this machine is the device that a variant's binaries were compiled for."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from pocketvlm.errors import EnvironmentFault
from pocketvlm.runtime.engines import load_engine
from pocketvlm.runtime.engines.qnn_provider import emulated, qairt_version
from pocketvlm.runtime.manifest import NPU_ENGINE, DeviceSpec, VariantSpec

_SOC_NAME = Path("/sys/devices/soc0/machine")
_PROPERTY = "ro.soc.model"


def soc_name() -> str | None:
    """Name of this machine's SoC ("SM8750"); None where nothing tells."""
    getprop = shutil.which("getprop")
    if getprop is not None:
        found = subprocess.run([getprop, _PROPERTY], capture_output=True, text=True, timeout=10, check=False).stdout.strip()
        if found:
            return found
    try:
        return _SOC_NAME.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def check_runs_here(variant: VariantSpec, stages: Iterable[str]) -> None:
    """Refuse graphs whose engine is not here, or that were compiled for another device.

    Raises:
        BundleError: an engine is not known.
        EnvironmentFault: naming what is needed and what is here.
    """
    names = list(stages)
    for engine in dict.fromkeys(variant.engine_of(stage)[0] for stage in names):
        load_engine(engine)
    check_device(variant, names)


def check_device(variant: VariantSpec, stages: Iterable[str]) -> None:
    """Refuse binaries that were compiled for another device, or by a compiler that is newer than the runtime here.

    The architecture of an NPU follows from its SoC's name; nothing tells it otherwise. Where the NPU is emulated, any SoC
    will do, but binaries that share weights will not.

    Args:
        stages: the graphs that shall run here; what others of the variant need does not count.

    Raises:
        EnvironmentFault: naming what is needed and what is here.
    """
    needed = variant.device
    used = [options for engine, options in map(variant.engine_of, stages) if engine == NPU_ENGINE]
    if needed is None or not used:
        return
    here = qairt_version()
    if _release(here) < _release(needed.qairt):
        raise EnvironmentFault(
            f"variant {variant.name!r} was compiled by QAIRT {needed.qairt}; the runtime here is QAIRT {here}, which is older",
            "install a newer onnxruntime-qnn here, or export with the one that is here",
        )
    if not emulated():
        _check_soc(variant.name, needed)
    elif any("shared_weights" in options for options in used):
        # It would end the process.
        raise EnvironmentFault(
            f"variant {variant.name!r} has binaries that share weights, which Qualcomm's emulation cannot run",
            f"run it on a {needed.soc}, or export with qnn.weight_sharing: false",
        )


def _check_soc(name: str, needed: DeviceSpec) -> None:
    here = soc_name()
    if here != needed.soc:
        raise EnvironmentFault(
            f"variant {name!r} was compiled for {needed.soc} (architecture v{needed.architecture}); this machine's SoC is "
            f"{here or 'not known'}",
            f"export it for {f'qnn:{here}' if here else 'this SoC'} or ort-cpu",
        )


def _release(version: str) -> tuple[int, ...]:
    """Major and minor number: patches of one release read each other's binaries."""
    return tuple(int(item) for item in re.findall(r"\d+", version)[:2])
