"""ONNX Runtime's telemetry is off, unless the user turns it on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOAD = "import pocketvlm.runtime.engines.onnxruntime_engine, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"


@pytest.mark.parametrize(("wish", "expected"), [(None, "1"), ("0", "0")])
def test_loading_the_engine_writes_nothing_and_obeys_the_user(tmp_path: Path, wish: str | None, expected: str) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    if wish is not None:
        environment["ORT_DISABLE_TELEMETRY"] = wish
    found = subprocess.run([sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == expected
    if wish is None:
        assert not list(tmp_path.rglob("*"))
