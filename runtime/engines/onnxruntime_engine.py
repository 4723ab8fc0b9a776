"""ONNX Runtime on the CPU."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from pocketvlm.errors import BundleError, Cancelled, EnvironmentFault
from pocketvlm.runtime.engines import int8_products
from pocketvlm.runtime.engines.protocol import Array, graph_name, require_contiguous
from pocketvlm.runtime.memory import drop_mapped_pages

# What fails is raised; ONNX Runtime would print it, too, and a run that was cancelled as an error.
_FATAL_ONLY = 4

# A bundle may come from a stranger, so only options that cannot name a file or a library are passed on.
_CONFIG_ENTRIES = frozenset(
    {
        "mlas.disable_kleidiai",
        "mlas.enable_gemm_fastmath_arm64_bfloat16",
        "session.disable_prepacking",
        "session.dynamic_block_base",
        "session.intra_op.allow_spinning",
        "session.qdq_matmulnbits_accuracy_level",
        "session.set_denormal_as_zero",
    }
)
# Arm's KleidiAI, with which ONNX Runtime replaces its own kernels on ARM. It has no effect on other processors.
_NO_KLEIDIAI = "mlas.disable_kleidiai"
# The values of arm_kernels, and the entry that they stand for.
_ARM_KERNELS = {"faithful": "1", "fastest": "0"}
_OPTIMIZATION_LEVELS = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
# What ONNX Runtime raises for files that it cannot make anything of.
BAD_FILE = (
    ort_errors.InvalidProtobuf,
    ort_errors.InvalidGraph,
    ort_errors.InvalidArgument,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.Fail,
    ort_errors.EPFail,
)
_FAILED_RUN = (RuntimeError, ValueError, ort_errors.Fail, ort_errors.InvalidArgument, ort_errors.RuntimeException)


class OnnxRuntimeEngine:
    """Opens ONNX files; weights in external data are memory-mapped by ONNX Runtime, and packed as its kernels want them.

    Options: "graph_optimization" (disabled, basic, extended, all), "int8_products" (exact: on processors where products of
    signed weights saturate, weights are made unsigned while they are loaded, which wants zero points with every product of
    bytes and an optimization of at least "extended"), "arm_kernels" (faithful, which is the default: on ARM, the kernels whose
    numbers are nearest to other processors'; fastest: those that Arm optimized), and the session configuration entries of
    `_CONFIG_ENTRIES`.
    """

    def open(self, path: Path, options: Mapping[str, str], threads: int | None) -> OnnxRuntimeSession:
        """See `Engine.open`."""
        settings, name = session_options(options, threads), graph_name(path)
        try:
            session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        except BAD_FILE as error:
            raise BundleError(
                f"{name}: ONNX Runtime {ort.__version__} cannot load it: {first_line(error)}",
                "export the checkpoint again",
            ) from error
        except (RuntimeError, MemoryError) as error:
            raise EnvironmentFault(f"{name}: ONNX Runtime failed to load it: {first_line(error)}") from error
        drop_mapped_pages(path.parent)
        return OnnxRuntimeSession(session, name)


class OnnxRuntimeSession:
    """One `onnxruntime.InferenceSession`."""

    def __init__(self, session: Any, name: str) -> None:
        self._session = session
        self._name = name
        self._outputs = [output.name for output in session.get_outputs()]
        self._lock = threading.Lock()
        self._running: set[Any] = set()
        self._idle: list[Any] = []
        self._bound: weakref.WeakSet[OnnxRuntimeBoundRun] = weakref.WeakSet()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `EngineSession.run`."""
        session, options = self._opened(), self._begin()
        try:
            values = session.run(self._outputs, dict(inputs), options)
        except _FAILED_RUN as error:
            raise self._failure(error, options) from error
        finally:
            self._end(options)
        return dict(zip(self._outputs, values, strict=True))

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> OnnxRuntimeBoundRun:
        """See `EngineSession.bind`."""
        require_contiguous(inputs)
        require_contiguous(outputs)
        bound = OnnxRuntimeBoundRun(self, inputs, outputs)
        self._bound.add(bound)
        return bound

    def cancel(self) -> None:
        """See `EngineSession.cancel`."""
        with self._lock:
            for options in self._running:
                options.terminate = True

    def close(self) -> None:
        """See `EngineSession.close`."""
        for bound in list(self._bound):
            bound.release()
        self._session = None

    def _opened(self) -> Any:
        if self._session is None:
            raise EnvironmentFault(f"{self._name}: the engine session is closed")
        return self._session

    def _begin(self) -> Any:
        """Options for one run, which `cancel` reaches until `_end`."""
        with self._lock:
            options = self._idle.pop() if self._idle else ort.RunOptions()
            self._running.add(options)
        return options

    def _end(self, options: Any) -> None:
        with self._lock:
            self._running.discard(options)
            if not options.terminate:
                self._idle.append(options)

    def _failure(self, error: Exception, options: Any) -> Exception:
        """What a run that failed with `error` raises."""
        if options.terminate:
            return Cancelled(f"{self._name}: the run was cancelled")
        if isinstance(error, ort_errors.InvalidArgument):
            return BundleError(
                f"{self._name}: the graph refuses its inputs: {first_line(error)}",
                "the graph does not fit the manifest; export the checkpoint again",
            )
        return EnvironmentFault(f"{self._name}: ONNX Runtime failed: {first_line(error)}")


class OnnxRuntimeBoundRun:
    """An IOBinding over the caller's arrays: OrtValues on the CPU share numpy's memory."""

    def __init__(self, owner: OnnxRuntimeSession, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        self._owner = owner
        self._arrays = [*inputs.values(), *outputs.values()]
        # One value per array, so that an operator sees that its input and output are the same buffer.
        values = {id(array): ort.OrtValue.ortvalue_from_numpy(array) for array in self._arrays}
        self._binding = owner._opened().io_binding()
        try:
            for name, array in inputs.items():
                self._binding.bind_ortvalue_input(name, values[id(array)])
            for name in owner._outputs:
                if name in outputs:
                    self._binding.bind_ortvalue_output(name, values[id(outputs[name])])
                else:
                    self._binding.bind_output(name)
        except RuntimeError as error:
            raise BundleError(
                f"{owner._name}: cannot bind the graph's inputs and outputs: {first_line(error)}",
                "the graph does not fit the manifest; export the checkpoint again",
            ) from error

    def run(self) -> float:
        """See `BoundRun.run`."""
        owner = self._owner
        session, options = owner._opened(), owner._begin()
        try:
            start = time.perf_counter()
            session.run_with_iobinding(self._binding, options)
            return time.perf_counter() - start
        except _FAILED_RUN as error:
            raise owner._failure(error, options) from error
        finally:
            owner._end(options)

    def release(self) -> None:
        """Drop the binding, which points into the session."""
        self._binding = None


def session_options(options: Mapping[str, str], threads: int | None) -> Any:
    """ONNX Runtime's options for a variant's `engine_options`.

    Raises:
        BundleError: an option is not known.
    """
    settings = ort.SessionOptions()
    settings.log_severity_level = _FATAL_ONLY
    settings.inter_op_num_threads = 1
    # ONNX Runtime plans memory by the shapes of the inputs. Chunks of one shape need more the deeper the cache, so that a
    # plan fits none of them, and its blocks only add to the memory.
    settings.enable_mem_pattern = False
    if threads is not None:
        settings.intra_op_num_threads = threads
    for key, value in options.items():
        if key == "graph_optimization" and value in _OPTIMIZATION_LEVELS:
            settings.graph_optimization_level = _OPTIMIZATION_LEVELS[value]
        elif (key, value) == ("int8_products", "exact"):
            if options.get("graph_optimization") in ("disabled", "basic"):
                raise BundleError("manifest.json: engine option int8_products=exact takes more than basic graph_optimization")
            # Only where it is needed: ONNX Runtime obeys on every x86 processor, and slows those with VNNI or AMX down.
            if int8_products.saturating():
                settings.add_session_config_entry("session.x64quantprecision", "1")
        elif key in _CONFIG_ENTRIES:
            settings.add_session_config_entry(key, value)
        elif key != "arm_kernels" or value not in _ARM_KERNELS:
            raise BundleError(f"manifest.json: engine option {key}={value!r} is not known to onnxruntime", "update PocketVLM")
    settings.add_session_config_entry(_NO_KLEIDIAI, _without_kleidiai(options))
    return settings


def _without_kleidiai(options: Mapping[str, str]) -> str:
    """The entry that follows from "arm_kernels", unless the bundle sets the entry itself."""
    entry, named = options.get(_NO_KLEIDIAI), options.get("arm_kernels")
    if entry is not None and named is not None and entry != _ARM_KERNELS[named]:
        raise BundleError(f"manifest.json: engine options arm_kernels={named} and {_NO_KLEIDIAI}={entry} contradict each other")
    return entry if entry is not None else _ARM_KERNELS[named or "faithful"]


def first_line(error: BaseException) -> str:
    """What went wrong, without the trace that ONNX Runtime may append."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
