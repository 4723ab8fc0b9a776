"""What compiling for the NPU needs on this machine, and what its binaries need on a phone."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import tempfile
from pathlib import Path

import onnx

from pocketvlm.errors import EnvironmentFault, GateError, UsageError
from pocketvlm.runtime.engines.qnn_provider import PACKAGE, check_library, emulated, qairt_version, reinstall
from pocketvlm.toolchain.backends.checks import Check
from pocketvlm.toolchain.backends.onnx_graph import IR_VERSION, OPSET
from pocketvlm.toolchain.backends.qnn.compiler import compile_options, run_worker
from pocketvlm.toolchain.backends.qnn.socs import Soc

_GLIBC_TAG = re.compile(r"manylinux_(\d+)_(\d+)_")
# Far more than one node takes.
_PROBE_MEMORY = 4 << 30
_WORKING = "one that works"
_VERSION = re.compile(r"(\d{1,9})\.(\d{1,9})(?:\.\d{1,9})*", re.ASCII)


def environment(soc: Soc, phone_runtime: str | None) -> list[Check]:
    """Checks in the order in which they matter. One that fails does not end them.

    Raises:
        UsageError: `phone_runtime` is no version.
    """
    phone = None if phone_runtime is None else _numbers(phone_runtime)
    told = f"{soc.chip}, architecture v{soc.architecture}, {soc.vtcm_mb} MB on chip"
    checks = [*_glibc(), Check(soc.name, told, "any of the table", ok=True)]
    version: str | None = None
    try:
        version = qairt_version()
        checks.append(_compiler(soc, version))
    except EnvironmentFault as error:
        checks.append(Check("compiler", error.message, _WORKING, ok=False, hint=error.hint))
    if phone is not None:
        checks.append(_phone(f"QAIRT {phone_runtime}", phone, version))
    return checks


def _phone(told: str, phone: tuple[int, int], compiler: str | None) -> Check:
    what = "runtime on the phone"
    if compiler is None:
        return Check(what, told, "that of the compiler or newer", ok=False, hint="the compiler's version is not known")
    major, minor = _numbers(compiler)
    advice = f"ship com.qualcomm.qti:qnn-runtime {major}.{minor} or newer with the app"
    return Check(what, told, f"{major}.{minor} or newer", phone >= (major, minor), advice)


def _numbers(version: str) -> tuple[int, int]:
    """Major and minor number, "2.50.40" -> 2, 50: patches of one release read each other's binaries."""
    found = _VERSION.fullmatch(version)
    if found is None:
        raise UsageError(
            f"--phone-runtime {version!r} is no version of QAIRT or qnn-runtime", "give two or more numbers, such as 2.50.0"
        )
    return int(found[1]), int(found[2])


def _glibc() -> list[Check]:
    """The wheel's tag says which C library it was linked against."""
    name, version = platform.libc_ver()
    try:
        wheel = importlib.metadata.distribution(PACKAGE).read_text("WHEEL") or ""
    except importlib.metadata.PackageNotFoundError:
        return []
    tag = _GLIBC_TAG.search(wheel)
    if name != "glibc" or tag is None:
        return []
    needed, here = (int(tag[1]), int(tag[2])), tuple(map(int, re.findall(r"\d+", version)[:2]))
    hint = "use a newer Linux: Debian 12, Ubuntu 22.04 or later"
    return [Check("glibc", version, f"{needed[0]}.{needed[1]} or newer", here >= needed, hint)]


def _compiler(soc: Soc, version: str) -> Check:
    """Whether a graph of one node can be compiled: in a process of its own, since a damaged library would end it."""
    try:
        check_library()
        with tempfile.TemporaryDirectory(prefix="pocketvlm-doctor-") as name:
            folder = Path(name)
            onnx.save(_one_node(), str(folder / "one_node.onnx"))
            job = {"work": "compile", "graphs": ["one_node.onnx"], "contexts": ["compiled.onnx"]}
            run_worker(folder, job | {"options": compile_options(soc, None)}, "one node", _PROBE_MEMORY)
            made = list(folder.glob("*.bin"))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        told = f"not tried: {where}{error.strerror or error}"
        return Check("compiler", told, _WORKING, ok=False, hint="free some space, or set TMPDIR to a folder that has some")
    except (EnvironmentFault, GateError) as error:
        told = f"QAIRT {version} does not work: {error.message}"
        return Check("compiler", told, _WORKING, ok=False, hint=f"install it again: {reinstall()}")
    if not made:
        told = f"QAIRT {version} does not work: it wrote no binary"
        return Check("compiler", told, _WORKING, ok=False, hint=f"install it again: {reinstall()}")
    return Check("compiler", f"QAIRT {version}, compiles" + (", NPU emulated" if emulated() else ""), _WORKING, ok=True)


def _one_node() -> onnx.ModelProto:
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 32]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "one_node", [x], [y])
    return onnx.helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[onnx.helper.make_opsetid("", OPSET)])
