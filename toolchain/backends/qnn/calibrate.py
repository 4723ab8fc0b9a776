"""Ranges of all activations, seen while real images and prompts go through the float graphs, layer by layer.

The decoder's come from the runtime's chunked loop: full chunks of 128 over a cache that fills up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pocketvlm.toolchain.backends.qnn import parts
from pocketvlm.toolchain.backends.qnn.float_graph import FloatRun, float_run
from pocketvlm.toolchain.backends.qnn.static_graph import Range
from pocketvlm.toolchain.backends.qnn.static_ops import MASKED_SCORES, SCORES, Attention, Int4, Weights
from pocketvlm.toolchain.spec import DecoderSpec, ModelSpec

Array = NDArray[np.float32]
Positions = Callable[[int], Mapping[str, Array]]

# A masked score is so far below the least score that all columns of a cache together get no weight that 16 bits can show.
_BELOW = 20.0
# Answers may be surer than anything in the calibration data; logits that are clipped would be equal.
_ROOM_FOR_LOGITS = 1.25
# Positions of each sequence that go through the output projection.
_ROWS = 64


def vision_ranges(
    spec: ModelSpec, weights: Weights, patches: Sequence[Array], advance: Callable[[int], None]
) -> dict[str, Range]:
    """Ranges of tower and connector.

    Args:
        patches: patch embeddings float32 [tiles, L, D] of real images.
    """
    found: dict[str, Range] = {}
    known = [{"patches": tile[None]} for image in patches for tile in image]
    for first, last in parts.cut(spec.vision.blocks, 1):
        with float_run(parts.vision_part(spec, weights, first, last, batch=1)) as run:
            for values in known:
                values |= _forward(run, values)
                if last > first:
                    _forget(values, spec, last)
            found |= run.ranges
        advance(1)
    with float_run(parts.connector(spec, weights, batch=1)) as run:
        for values in known:
            _forward(run, values)
        found |= run.ranges
    return found


def _forward(run: FloatRun, values: Mapping[str, Array]) -> dict[str, Array]:
    return run.run({name: values[name] for name in run.inputs})


def _forget(values: dict[str, Array], spec: ModelSpec, last: int) -> None:
    """Drop hidden states that nothing needs any more."""
    for name in list(values):
        layer = name.removeprefix("vision.hidden.")
        if layer != name and int(layer) < last and int(layer) not in spec.vision.feature_layers:
            del values[name]


def decoder_ranges(
    spec: ModelSpec, weights: Weights, int4: Int4, sequences: Sequence[Array], positions: Positions, *, length: int,
    capacity: int, attention: Attention, advance: Callable[[int], None],
) -> dict[str, Range]:  # fmt: skip
    """Ranges of the decoder's layers and of the output projection.

    Args:
        sequences: embeddings float32 [1, L, H] of real conversations and text.
        positions: filled columns -> cos, sin and mask of a chunk.
        length: positions of a chunk.
    """
    found: dict[str, Range] = {}
    states = list(sequences)
    for layer in range(spec.decoder.layers):
        graph = parts.decoder_part(spec, weights, int4, layer, layer + 1, length=length, capacity=capacity, attention=attention)
        with float_run(graph) as run:
            states = [_through(run, spec.decoder, layer, state, positions, length, capacity) for state in states]
            found |= run.ranges
        advance(1)
    with float_run(parts.output_projection(spec, weights)) as run:
        for state in states:
            for row in range(0, state.shape[1], max(1, state.shape[1] // _ROWS)):
                run.run({"hidden": state[:, row : row + 1]})
        found |= run.ranges
    low, high = found["logits"]
    found["logits"] = (low, high * _ROOM_FOR_LOGITS)
    return found


def mask_scores(ranges: dict[str, Range]) -> float:
    """What must be added to a score that is not to count; sets the ranges of masked scores in `ranges`.

    Quantized scores end at their ranges, so no score can be further below another than its layer's range is wide. The range
    behind the mask ends `_BELOW` under the least score, where all that is masked saturates: however low the mask, it takes
    none of the scores' 16 bits.
    """
    widest = 0.0
    for name in [name for name in ranges if name.endswith(f"/{SCORES}")]:
        low, high = ranges[name]
        widest = max(widest, high - low)
        ranges[f"{name.removesuffix(SCORES)}{MASKED_SCORES}"] = (low - _BELOW, high)
    return -(widest + _BELOW)


def _through(
    run: FloatRun, decoder: DecoderSpec, layer: int, state: Array, positions: Positions, length: int, capacity: int
) -> Array:
    """One layer over a whole sequence, chunk by chunk, with the layer's own cache."""
    name, result = parts.hidden(decoder, layer) if layer else "embeddings", parts.hidden(decoder, layer + 1)
    keys = np.zeros((1, decoder.kv_heads, decoder.head_dim, capacity), np.float32)
    values = np.zeros((1, decoder.kv_heads, capacity, decoder.head_dim), np.float32)
    collected = []
    for past, count, chunk in _chunks(state, length):
        inputs = {name: chunk, f"past_key.{layer}": keys, f"past_value.{layer}": values, **positions(past)}
        outputs = run.run(inputs)
        keys[..., past : past + count] = outputs[f"new_key.{layer}"][..., :count]
        values[:, :, past : past + count] = outputs[f"new_value.{layer}"][:, :, :count]
        collected.append(outputs[result][:, :count])
    return np.concatenate(collected, 1)


def _chunks(state: Array, length: int) -> Iterator[tuple[int, int, Array]]:
    """Filled columns, true positions and the chunk [1, length, H]; a short one repeats its last row, to stay in range."""
    for past in range(0, state.shape[1], length):
        chunk = state[:, past : past + length]
        count = chunk.shape[1]
        yield past, count, np.concatenate([chunk, np.repeat(chunk[:, -1:], length - count, 1)], 1)
