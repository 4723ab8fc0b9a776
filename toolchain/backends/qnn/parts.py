"""The graphs that run on the NPU: parts of the vision tower, the connector, parts of the decoder, the output projection.

A deep tower or decoder is cut into parts, because compiling takes memory with the depth. What goes from one part to the next
has the same name in both, so the runtime only connects names.
"""

from __future__ import annotations

import itertools

from pocketvlm.toolchain.backends.qnn.static_graph import StaticGraph
from pocketvlm.toolchain.backends.qnn.static_ops import MASKED, Attention, Int4, StaticDecoderOps, StaticOps, Weights
from pocketvlm.toolchain.connectors import CONNECTORS
from pocketvlm.toolchain.decoders import DECODERS
from pocketvlm.toolchain.encoders import ENCODERS
from pocketvlm.toolchain.spec import DecoderSpec, ModelSpec

# The tensor processor works on 32 rows at once: 729 patches cost twice as much as 736.
_ROWS = 32


def cut(layers: int, most: int) -> list[tuple[int, int]]:
    """Layers [first, last) of each part, as even as possible. 27 layers in parts of at most 8: 7, 7, 6, 7."""
    count = max(1, -(-layers // most))
    bounds = [round(number * layers / count) for number in range(count + 1)]
    return list(itertools.pairwise(bounds))


def vision_part(spec: ModelSpec, weights: Weights, first: int, last: int, batch: int, *, masked: float = MASKED) -> StaticGraph:
    """Blocks [first, last) of the tower; the first part pads the patches, the last one ends in the features [batch, N, D'].

    Inputs: patches [batch, L, D], or vision.hidden.<first> [batch, L padded, D] and, in the last part, the hidden states of
    earlier parts that belong to the features.
    """
    vision = spec.vision
    encoder = ENCODERS.load(vision.kind)
    graph = StaticGraph(f"vision_encoder_{first}")
    ops = StaticOps(graph, weights, masked=masked)
    ops.valid_positions = vision.sequence_length
    padded = -(-vision.sequence_length // _ROWS) * _ROWS
    shape = (batch, padded, vision.hidden_size)
    if first == 0:
        x = graph.input("patches", (batch, vision.sequence_length, vision.hidden_size))
        if padded > vision.sequence_length:
            with graph.scope("vision.padding"):
                x = graph.rename(ops.pad_end(x, 1, padded - vision.sequence_length), _vision_state(0))
    else:
        x = graph.input(_vision_state(first), shape)
    states = {first: x}
    for index in range(first, last):
        with graph.scope(f"vision.layers.{index}"):
            x = states[index + 1] = graph.rename(encoder.block(ops, vision, x, index), _vision_state(index + 1))
    if last < vision.blocks:
        for layer, state in states.items():
            if layer == last or (layer in vision.feature_layers and state not in graph.inputs):
                graph.outputs.append(state)
        return graph
    for layer in vision.feature_layers:
        if layer not in states:
            states[layer] = graph.input(_vision_state(layer), shape)
    with graph.scope("vision.features"):
        features = encoder.finish(ops, vision, {layer: states[layer] for layer in vision.feature_layers})
        if graph.shapes[features][1] > vision.feature_count:
            features = ops.slice(features, 1, 0, vision.feature_count)
    graph.output(features, "features")
    return graph


def _vision_state(layer: int) -> str:
    return f"vision.hidden.{layer}"


def connector(spec: ModelSpec, weights: Weights, batch: int) -> StaticGraph:
    """Features [batch, N, D'] -> visual tokens [batch, T, H]."""
    graph = StaticGraph("connector")
    features = graph.input("features", (batch, spec.vision.feature_count, spec.vision.feature_size))
    with graph.scope("connector"):
        tokens = CONNECTORS.load(spec.connector.kind).connect(StaticOps(graph, weights), spec.connector, features)
    graph.output(tokens, "tokens")
    return graph


def decoder_part(
    spec: ModelSpec, weights: Weights, int4: Int4, first: int, last: int, *, length: int, capacity: int,
    attention: Attention = "joined", masked: float = MASKED,
) -> StaticGraph:  # fmt: skip
    """Layers [first, last) of the decoder for `length` positions: embeddings or hidden.<first> -> hidden.<last>, [1, T, H].

    Behind the last layer the name is hidden.
    """
    decoder = spec.decoder
    module = DECODERS.load(decoder.kind)
    graph = StaticGraph(f"decoder_{first}_t{length}")
    ops = StaticDecoderOps(graph, weights, int4, decoder, length=length, capacity=capacity, attention=attention, masked=masked)
    x = graph.input("embeddings" if first == 0 else hidden(decoder, first), (1, length, decoder.hidden_size))
    ops.declare_positions()
    for index in range(first, last):
        with graph.scope(f"decoder.layers.{index}"):
            x = graph.rename(module.layer(ops, decoder, x, index), hidden(decoder, index + 1))
    graph.outputs.append(x)
    return graph


def hidden(decoder: DecoderSpec, layer: int) -> str:
    """Name of the decoder's hidden state before `layer`; behind the last one it is what lm_head takes."""
    return "hidden" if layer == decoder.layers else f"hidden.{layer}"


def output_projection(spec: ModelSpec, weights: Weights) -> StaticGraph:
    """The last norm and the output projection for one position: hidden [1, 1, H] -> logits [1, V]."""
    decoder = spec.decoder
    graph = StaticGraph("lm_head")
    ops = StaticDecoderOps(graph, weights, None, decoder, length=1, capacity=1)
    x = graph.input("hidden", (1, 1, decoder.hidden_size))
    with graph.scope("lm_head"):
        logits = DECODERS.load(decoder.kind).logits(ops, decoder, x)
    graph.output(logits, "logits")
    return graph
