"""ONNX Runtime's QNN execution provider: a plugin library, loaded once per process."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import os
import platform
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from pocketvlm.errors import EnvironmentFault

PACKAGE = "onnxruntime-qnn"
PROVIDER = "QNNExecutionProvider"
_INSTALL = "pip install 'pocketvlm[qnn]'; in a clone: '.[qnn]'"
# Parts of the package that are loaded into the process. One that is cut off would end it.
_LIBRARIES = re.compile(r"(lib)?(onnxruntime_providers_qnn|QnnHtp|QnnSystem)\.(so|dll)")
# What the emulation says whenever it is loaded, on standard output.
_GREETING = b"# LIBNATIVE:"
_lock = threading.Lock()
_devices: list[Any] = []


def qnn_module() -> Any:
    """The package `onnxruntime_qnn`.

    Raises:
        EnvironmentFault: it is not installed, or there is none for this system.
    """
    try:
        return importlib.import_module("onnxruntime_qnn")
    except ImportError as error:
        raise EnvironmentFault(f"package {PACKAGE} is missing: {error}", _INSTALL) from error


def qairt_version() -> str:
    """Version of Qualcomm's libraries in the installed package, such as "2.50.40".

    Raises:
        EnvironmentFault: the package is missing.
    """
    return str(qnn_module().build_and_package_info.qnn_version)


def emulated() -> bool:
    """Whether the provider would run on an emulation of the tensor processor here, which is for checks, not for speed."""
    return platform.machine().lower() in ("x86_64", "amd64")


def npu_session(path: str, settings: Any, options: dict[str, str]) -> Any:
    """An `InferenceSession` that runs on the NPU and nowhere else.

    Args:
        settings: ONNX Runtime's `SessionOptions`; they are completed.
        options: the provider's own options.

    Raises:
        EnvironmentFault: the package is missing, or its libraries do not load. What ONNX Runtime raises is left as it is.
    """
    _add_provider(settings, options)
    with _lock:
        return ort.InferenceSession(path, sess_options=settings)


def _load_emulation(path: str) -> None:
    """Load Qualcomm's library ahead of the provider, and leave out what it greets with; whatever else it says goes to stderr.

    The provider would load it later and, if that failed, only say that it takes no operators.

    Raises:
        EnvironmentFault: it does not load.
    """
    if not emulated() or sys.platform != "linux":
        return
    with os.fdopen(os.memfd_create("pocketvlm"), "w+b") as said:
        try:
            with _stdout_to(said.fileno()):
                _load_library(path)
        finally:
            said.seek(0)
            for line in said:
                if not line.lstrip().startswith(_GREETING):
                    os.write(2, line)


def _load_library(path: str) -> None:
    try:
        ctypes.CDLL(path)
    except OSError as error:
        raise _unloadable(error) from error


def _unloadable(error: Exception) -> EnvironmentFault:
    return EnvironmentFault(f"{PACKAGE} cannot be loaded: {str(error).splitlines()[0]}", reinstall())


@contextmanager
def _stdout_to(file: int) -> Iterator[None]:
    """The process's standard output, that of C included, goes to another open file, if the process has one."""
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()
    try:
        saved = os.dup(1)
    except OSError:
        yield
        return
    flush = ctypes.CDLL(None).fflush
    # What C has buffered is for the old place, and what it buffers within for the new one.
    flush(None)
    os.dup2(file, 1)
    try:
        yield
    finally:
        flush(None)
        os.dup2(saved, 1)
        os.close(saved)


def _add_provider(settings: Any, options: dict[str, str]) -> None:
    devices = loaded_devices()
    if not devices:
        raise EnvironmentFault(f"{PACKAGE} finds no device here", "run it on a Snapdragon, or on x86-64 to emulate one")
    # An operator that the NPU cannot take is an error, not a reason to run it elsewhere.
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # Without this, quantizing float inputs and outputs would be left to the CPU.
    fixed = {"backend_path": qnn_module().get_qnn_htp_path(), "offload_graph_io_quantization": "0"}
    settings.add_provider_for_devices(devices[:1], {**fixed, **options})


def check_library() -> None:
    """Refuse an installation with a file missing or cut off: loading that would end the process, not raise an error.

    Raises:
        EnvironmentFault: the package is missing, or naming the file.
    """
    folder = Path(qnn_module().__file__).parent
    try:
        files = importlib.metadata.distribution(PACKAGE).files or []
    except importlib.metadata.PackageNotFoundError:
        # Put there by other means than an installer: nothing tells what belongs to it.
        return
    for file in files:
        if not _LIBRARIES.fullmatch(file.name) or file.size is None:
            continue
        path = folder / file.name
        if not path.is_file():
            raise _damaged(f"{path} is missing")
        size = path.stat().st_size
        if size != file.size:
            raise _damaged(f"{path} has {size} bytes instead of {file.size}")


def _damaged(message: str) -> EnvironmentFault:
    return EnvironmentFault(f"package {PACKAGE} is damaged: {message}", reinstall())


def reinstall() -> str:
    """The command that puts the installed version back into order."""
    return f"pip install --force-reinstall --no-deps {PACKAGE}=={qnn_module().build_and_package_info.__version__}"


def loaded_devices() -> list[Any]:
    """Load the provider, if it is not; returns the devices that it finds.

    Raises:
        EnvironmentFault: the package is missing or damaged, or its libraries do not load.
    """
    module = qnn_module()
    with _lock:
        if not _devices:
            check_library()
            _load_emulation(module.get_qnn_htp_path())
            try:
                ort.register_execution_provider_library(PROVIDER, module.get_library_path())
            except (RuntimeError, ort_errors.Fail) as error:
                raise _unloadable(error) from error
            _devices.extend(device for device in ort.get_ep_devices() if device.ep_name == PROVIDER)
    return _devices
