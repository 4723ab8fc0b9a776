"""The engines by name; each is imported on first use.

An engine is the program that runs a variant's graphs. A backend, on the toolchain's side, is what they were compiled for.
"""

from __future__ import annotations

import importlib

from pocketvlm.errors import BundleError, EnvironmentFault
from pocketvlm.runtime.engines.protocol import Engine

ENGINES = {
    "onnxruntime": "pocketvlm.runtime.engines.onnxruntime_engine:OnnxRuntimeEngine",
    "onnxruntime-qnn": "pocketvlm.runtime.engines.qnn_engine:QnnEngine",
    "fake": "pocketvlm.runtime.engines.fake:FakeEngine",
}


def load_engine(name: str) -> Engine:
    """The engine called `name`.

    Raises:
        BundleError: no such engine.
        EnvironmentFault: its package is not installed here.
    """
    if name not in ENGINES:
        raise BundleError(f"engine {name!r} is not known", "update PocketVLM")
    module, attribute = ENGINES[name].split(":")
    try:
        engine: Engine = getattr(importlib.import_module(module), attribute)()
    except ImportError as error:
        raise EnvironmentFault(f"engine {name!r} cannot be loaded: {error}", "install the package that it names") from error
    return engine
