"""What the resident memory of a language model's process consists of: how much each step from start to answer adds.

    python benchmarks/memory.py build/bench/int8-cache
    python benchmarks/memory.py build/bench/int8-prefill

The steps are those of peers/run_pocketvlm.py, whose peak memory `make bench` compares with the peers'. Linux only.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import table

from pocketvlm.errors import PocketVLMError


class Steps:
    """Resident memory of this process in MiB after each named step, and its peak during it."""

    def __init__(self) -> None:
        self.rows: list[list[str]] = []
        self._before = 0.0

    def add(self, name: str, step: Callable[[], Any]) -> Any:
        """Run `step` and note what it left."""
        result = step()
        gc.collect()
        now, peak = self._resident()
        self.rows.append([name, f"{now - self._before:.0f}", f"{now:.0f}", f"{peak:.0f}"])
        self._before = now
        return result

    def _resident(self) -> tuple[float, float]:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
        return sizes["VmRSS"], sizes["VmHWM"]


def _import_numpy() -> None:
    import numpy  # noqa: F401


def _import_onnxruntime() -> None:
    import onnxruntime  # noqa: F401


def _import_runtime() -> None:
    import pocketvlm.runtime.answer
    import pocketvlm.runtime.engines.onnxruntime_engine  # noqa: F401


def measure(path: Path, prompt_tokens: int, new_tokens: int, threads: int) -> list[list[str]]:
    """Rows of step, MiB added, MiB resident, largest MiB so far."""
    steps = Steps()
    steps.add("Python", lambda: None)
    steps.add("numpy", _import_numpy)
    steps.add("onnxruntime", _import_onnxruntime)
    steps.add("the runtime's other imports (Pillow, tokenizers)", _import_runtime)

    from pocketvlm.runtime.answer import PromptRows
    from pocketvlm.runtime.bundle import Bundle
    from pocketvlm.runtime.decoder import STAGES, Decoder
    from pocketvlm.runtime.engines import load_engine
    from pocketvlm.runtime.prompt import PromptTokens
    from pocketvlm.runtime.tokenizer import Tokenizer

    bundle = steps.add("manifest", lambda: Bundle.open(path, verify=False))
    kept = [steps.add("tokenizer", lambda: Tokenizer.of(bundle))]
    variant = bundle.variant()
    engine = load_engine(variant.engine)
    sessions: dict[str, Any] = {}
    opened: dict[str, Any] = {}
    for name in STAGES:
        file = variant.stages[name].file
        if file not in opened:
            own = 1 if name == "embed_tokens" else threads
            opened[file] = steps.add(
                file, lambda file=file, own=own: engine.open(bundle.path(file), variant.engine_options, own)
            )
        sessions[name] = opened[file]
    decoder = steps.add("buffers, the cache's untouched", lambda: Decoder(variant, sessions))
    # Which tokens they are is all one to memory.
    rows = PromptRows(PromptTokens((tuple(range(1, prompt_tokens + 1)),)), [], decoder)
    steps.add(f"prefill of {prompt_tokens} tokens", lambda: decoder.prefill(rows))
    steps.add(f"{new_tokens} decoded tokens", lambda: [decoder.step(1) for _ in range(new_tokens)])
    del kept
    return steps.rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompt-tokens", type=int, default=1536)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    try:
        rows = measure(arguments.bundle, arguments.prompt_tokens, arguments.new_tokens, arguments.threads)
    except (PocketVLMError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    print(table(["step", "MiB added", "resident", "peak so far"], rows))


if __name__ == "__main__":
    main()
