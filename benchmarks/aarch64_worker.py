"""What `aarch64.py` runs on each processor: the runtime alone, with numpy.

    python benchmarks/aarch64_worker.py JOB.json

A job is {"operators": folder, "options": engine options, "out": file} or {"bundle": folder, "options": more engine options,
"tokens": ids, "prompt": how many of them are prefilled, "out": file}.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pocketvlm.runtime.bundle import Bundle
from pocketvlm.runtime.decoder import Decoder
from pocketvlm.runtime.engines import int8_products, load_engine


def operators(folder: Path, options: dict[str, str]) -> dict[str, Any]:
    """Outputs of every graph in `folder`, on the inputs beside it."""
    found: dict[str, Any] = {"saturating": np.array(int8_products.saturating())}
    for path in sorted(folder.glob("*.onnx")):
        session = load_engine("onnxruntime").open(path, options, 1)
        for name, values in np.load(path.with_suffix(".npz")).items():
            found[f"{path.stem}/{name}"] = next(iter(session.run({"x": values}).values()))
        session.close()
    return found


def logits(folder: Path, options: dict[str, str], tokens: list[int], prompt: int) -> dict[str, Any]:
    """Logits [len(tokens) - prompt, V] of what follows each token from tokens[prompt] on."""
    variant = Bundle.open(folder, verify=False).manifest.variants[0]
    variant = replace(variant, engine_options={**variant.engine_options, **options})
    sessions = {}
    for name in ("embed_tokens", "prefill", "decode"):
        key = variant.stages[name].file
        if key not in sessions:
            sessions[key] = load_engine(variant.engine).open(folder / key, variant.engine_options, 1)
    decoder = Decoder(variant, {name: sessions[variant.stages[name].file] for name in ("embed_tokens", "prefill", "decode")})
    decoder.prefill(decoder.embed(tokens[:prompt]))
    return {"logits": np.stack([decoder.step(token).astype(np.float32) for token in tokens[prompt:]])}


def main() -> int:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if "operators" in job:
        found = operators(Path(job["operators"]), job["options"])
    else:
        found = logits(Path(job["bundle"]), job["options"], job["tokens"], job["prompt"])
    np.savez(job["out"], **found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
