"""Whether this machine is the device that a variant's binaries were compiled for."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from pocketvlm.errors import EnvironmentFault
from pocketvlm.runtime.engines.qnn_provider import emulated, qairt_version
from pocketvlm.runtime.manifest import DeviceSpec, VariantSpec

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


def check_device(variant: VariantSpec) -> None:
    """Refuse binaries that were compiled for another device, or by a compiler that is newer than the runtime here.

    Where the NPU is emulated, any SoC will do, but binaries that share weights will not.

    Raises:
        EnvironmentFault: naming what is needed and what is here.
    """
    needed = variant.device
    if needed is None:
        return
    here = qairt_version()
    if _numbers(here) < _numbers(needed.qairt):
        raise EnvironmentFault(
            f"variant {variant.name!r} was compiled by QAIRT {needed.qairt}; the runtime here is QAIRT {here}, which is older",
            "install a newer onnxruntime-qnn here, or export with the one that is here",
        )
    if not emulated():
        _check_soc(variant.name, needed)
    elif any("shared_weights" in variant.engine_of(stage)[1] for stage in variant.stages):
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


def _numbers(version: str) -> tuple[int, ...]:
    """Major and minor number: patches of one release read each other's binaries."""
    return tuple(int(item) for item in re.findall(r"\d+", version)[:2])
