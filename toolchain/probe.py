"""Fixed inputs and the outputs that the exporter saw: how a bundle is checked on another machine without its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketvlm.runtime.manifest import TensorSpec, VariantSpec
from pocketvlm.toolchain.stages import VISION_STAGES, OpenStages, open_stages

_KEPT = 256
_PROMPT = 16


def record(variant: VariantSpec, root: Path) -> dict[str, tuple[float, ...]]:
    """Outputs of every stage for fixed inputs: up to 256 values each, evenly spread over the output."""
    with open_stages(variant, root) as stages:
        found = {}
        for name in VISION_STAGES:
            tensor = variant.stages[variant.chain(name)[0]].inputs[0]
            found[name] = _spread(stages.run(name, _wave(tensor)))
        found |= _decoder(stages)
    return found


def _decoder(stages: OpenStages) -> dict[str, tuple[float, ...]]:
    decoder = stages.decoder
    vocabulary = decoder.vocab_size
    count = min(_PROMPT, decoder.capacity - 1)
    embeddings = decoder.embed([(7 * index + 3) % vocabulary for index in range(count)])
    found = {"embed_tokens": _spread(embeddings)}
    found["prefill"] = _spread(decoder.prefill(embeddings))
    found["decode"] = _spread(decoder.step(5 % vocabulary))
    return found


def compare(variant: VariantSpec, root: Path, recorded: dict[str, Any]) -> dict[str, float]:
    """Cosine between what the stages give here and what was recorded, per stage."""
    here = record(variant, root)
    return {name: _cosine(np.array(here[name]), np.array(recorded.get(name, []), np.float64)) for name in here}


def _wave(tensor: TensorSpec) -> NDArray[np.float32]:
    """A smooth, fixed, non-constant input for one item."""
    shape = [1 if index == 0 else size for index, size in enumerate(tensor.shape)]
    count = int(np.prod([size for size in shape if isinstance(size, int)]))
    return np.sin(np.arange(count, dtype=np.float64) * 0.37).astype(np.float32).reshape([int(size) for size in shape])


def _spread(values: NDArray[Any]) -> tuple[float, ...]:
    flat = values.reshape(-1)
    chosen = flat[np.linspace(0, flat.size - 1, min(_KEPT, flat.size)).astype(np.int64)]
    return tuple(float(f"{value:.6g}") for value in chosen)


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if a.shape != b.shape:
        return 0.0
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))
