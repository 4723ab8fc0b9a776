"""Fixed inputs and the outputs that the exporter saw: how a bundle is checked on another machine without its checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketvlm.runtime.decoder import Decoder
from pocketvlm.runtime.decoder_contract import find_tensor, last_size, stage_names
from pocketvlm.runtime.manifest import TensorSpec, VariantSpec
from pocketvlm.toolchain.stages import VISION_STAGES, open_sessions, run_vision

_KEPT = 256
_PROMPT = 16


def stages_of(variant: VariantSpec) -> tuple[str, ...]:
    """What has a probe, in the order in which they run."""
    head = ("lm_head",) if "lm_head" in variant.stages else ()
    return (*VISION_STAGES, "embed_tokens", "prefill", "decode", *head)


def graphs_of(variant: VariantSpec, stage: str) -> tuple[str, ...]:
    """The graphs that the probe of a stage runs: prefill and decode are parts of one loop."""
    if stage in ("prefill", "decode"):
        return stage_names(variant)
    return variant.chain(stage)


def record(
    variant: VariantSpec, root: Path, wanted: Container[str] | None = None, begin: Callable[[str], None] = lambda stage: None
) -> dict[str, tuple[float, ...]]:
    """Outputs of stages for fixed inputs: up to 256 values each, evenly spread over the output.

    Args:
        wanted: only these stages; `prefill` and `decode` go together.
        begin: called with each stage before it is opened and run.
    """
    found: dict[str, tuple[float, ...]] = {}
    names = [stage for stage in stages_of(variant) if wanted is None or stage in wanted]
    ids = _ids(variant)
    for name in names:
        begin(name)
        if name == "decode":
            continue  # prefill's loop has run it
        with open_sessions(variant, root, graphs_of(variant, name)) as sessions:
            if name in VISION_STAGES:
                source = _wave(variant.stages[variant.chain(name)[0]].inputs[0])
                found[name] = _spread(run_vision(variant, sessions, name, source))
            elif name == "embed_tokens":
                found[name] = _spread(sessions[name].run({"token_ids": np.array([ids], np.int64)})["embeddings"])
            elif name == "lm_head":
                found[name] = _spread(sessions[name].run({"hidden": _wave(variant.stages[name].inputs[0])})["logits"])
            else:
                found |= _loop(Decoder(variant, sessions), ids)
    return found


def _loop(decoder: Decoder, ids: Sequence[int]) -> dict[str, tuple[float, ...]]:
    prefill = _spread(decoder.prefill(decoder.embed(ids)))
    return {"prefill": prefill, "decode": _spread(decoder.step(5 % decoder.vocab_size))}


def _ids(variant: VariantSpec) -> list[int]:
    head = variant.stages["lm_head" if "lm_head" in variant.stages else variant.chain("decode")[-1]]
    vocabulary = last_size(find_tensor(head.outputs, "logits"))
    return [(7 * index + 3) % vocabulary for index in range(min(_PROMPT, variant.kv_cache.capacity - 1))]


def compare(recorded: Mapping[str, Any], here: Mapping[str, tuple[float, ...]]) -> dict[str, float]:
    """Cosine between what stages give here and what was recorded, per stage."""
    return {name: _cosine(np.array(values), np.array(recorded.get(name, []), np.float64)) for name, values in here.items()}


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
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return 0.0
    # Also of nothing but zeros, which have no direction.
    if np.array_equal(a, b):
        return 1.0
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))
