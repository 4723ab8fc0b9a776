"""ONNX Runtime on Qualcomm's NPU, through the QNN execution provider."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

from pocketvlm.errors import BundleError, EnvironmentFault
from pocketvlm.runtime.engines.onnxruntime_engine import BAD_FILE, OnnxRuntimeSession, first_line
from pocketvlm.runtime.engines.protocol import graph_name
from pocketvlm.runtime.engines.qnn_provider import npu_session, qnn_module

_PROVIDER_OPTIONS = frozenset({"soc_model", "htp_arch", "vtcm_mb", "htp_performance_mode"})
_FATAL_ONLY = 4


class QnnEngine:
    """Opens context binaries: small models that name a binary beside them.

    Options: "shared_weights" ("1": the binary holds the graphs of several models, each of which is opened with this option,
    and is loaded once), and the provider's own options of `_PROVIDER_OPTIONS`. Everything runs on the NPU, or, on x86-64, on
    Qualcomm's emulation of it.
    """

    def __init__(self) -> None:
        qnn_module()

    def open(self, path: Path, options: Mapping[str, str], threads: int | None) -> OnnxRuntimeSession:
        """See `Engine.open`."""
        settings, name = ort.SessionOptions(), graph_name(path)
        settings.log_severity_level = _FATAL_ONLY
        for key, value in options.items():
            if key not in _PROVIDER_OPTIONS and (key, value) != ("shared_weights", "1"):
                raise BundleError(
                    f"manifest.json: engine option {key}={value!r} is not known to onnxruntime-qnn", "update PocketVLM"
                )
        if "shared_weights" in options:
            settings.add_session_config_entry("ep.share_ep_contexts", "1")
        chosen = {key: value for key, value in options.items() if key in _PROVIDER_OPTIONS}
        try:
            session = npu_session(str(path), settings, chosen)
        except BAD_FILE as error:
            raise BundleError(
                f"{name}: the NPU's runtime cannot load it: {first_line(error)}",
                "copy the bundle again, or export the checkpoint again",
            ) from error
        except (RuntimeError, MemoryError) as error:
            raise EnvironmentFault(f"{name}: the NPU's runtime failed to load it: {first_line(error)}") from error
        return OnnxRuntimeSession(session, name)
