"""The decoder's matrices as the targets ask for them: each scheme is worked out once an export, when it is first needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pocketvlm.toolchain.decoders import DECODERS
from pocketvlm.toolchain.kept import Kept, digest_of
from pocketvlm.toolchain.quantize import distill, gptq
from pocketvlm.toolchain.quantize.block import BlockWeights
from pocketvlm.toolchain.quantize.scheme import WeightScheme
from pocketvlm.toolchain.spec import DecoderSpec
from pocketvlm.toolchain.torch_ops import Weights

Method = Literal["rtn", "gptq", "distill"]
# Begins a part of the work with so many steps; what it returns is called with 1 after each.
Begin = Callable[[str, int], Callable[[int], None]]
_PARTS = ("codes", "scales", "zeros")
# What progress calls the steps.
_GPTQ, _DISTILLATION = "GPTQ of the decoder", "distillation of the decoder"


@dataclass(frozen=True, slots=True)
class QuantizedDecoder:
    """The decoder in one scheme.

    Attributes:
        blocks: canonical prefix of a matrix ("decoder.layers.0.q") -> its block weights.
        weights: all other parameters: those of the checkpoint, or what tuning has put in their place.
        origin: the method, and the hash of what it saw.
    """

    blocks: Callable[[str], BlockWeights]
    weights: Weights
    origin: str


def quantize(
    spec: DecoderSpec, weights: Weights, method: Method, scheme: WeightScheme, sequences: Sequence[Tensor], begin: Begin,
    kept: Kept | None = None,
) -> QuantizedDecoder:  # fmt: skip
    """Quantize the linear layers inside the decoder's layers.

    Args:
        weights: the checkpoint's parameters.
        sequences: calibration embeddings, float32 [batch, length, H] each; "rtn" needs none.
        kept: where the result of each step is looked up and kept.
    """
    if method == "rtn":
        return QuantizedDecoder(lambda name: scheme.round(weights(f"{name}.weight")), weights, method)
    seen = digest_of(sequence.numpy() for sequence in sequences)
    on = [spec, scheme, seen]
    known = _known(kept, "gptq", on, scheme, _GPTQ)
    if known is None:
        layer = DECODERS.load(spec.kind).layer
        blocks = gptq.quantize_decoder(spec, layer, weights, sequences, scheme, begin(f"{_GPTQ}: {scheme}", spec.layers))
        known = distill.Tuned(blocks, {})
        _keep(kept, "gptq", on, known)
    if method == "distill":
        start = known.blocks
        rates = distill.Rates()
        known = _known(kept, "distilled", [*on, rates], scheme, _DISTILLATION)
        if known is None:
            told = f"{_DISTILLATION}: {scheme}"
            known = distill.tune(spec, weights, start, sequences, scheme, rates, begin(told, rates.steps))
            _keep(kept, "distilled", [*on, rates], known)
    return QuantizedDecoder(known.blocks.__getitem__, distill.overlaid(weights, known.norms), f"{method} {seen}")


def _keep(kept: Kept | None, name: str, on: list[object], result: distill.Tuned) -> None:
    if kept is None:
        return
    arrays = {f"{prefix}/{part}": getattr(found, part) for prefix, found in result.blocks.items() for part in _PARTS}
    # Sizes cannot be told from the arrays.
    arrays |= {f"{prefix}/inputs": np.array([found.inputs]) for prefix, found in result.blocks.items()}
    kept.keep_arrays(name, on, arrays | {f"{norm}/norm": value.numpy() for norm, value in result.norms.items()})


def _known(kept: Kept | None, name: str, on: list[object], scheme: WeightScheme, work: str) -> distill.Tuned | None:
    arrays = None if kept is None else kept.arrays(name, on, f"{work}: {scheme}")
    if arrays is None:
        return None
    blocks: dict[str, BlockWeights] = {}
    norms: dict[str, Tensor] = {}
    for key, value in arrays.items():
        prefix, part = key.rsplit("/", 1)
        if part == "norm":
            norms[prefix] = torch.from_numpy(value)
        elif part == "inputs":
            inputs = int(value[0])
            codes, scales, zeros = (arrays[f"{prefix}/{part}"] for part in _PARTS)
            blocks[prefix] = BlockWeights(codes, scales, zeros, scheme.bits, scheme.block_of(inputs), inputs)
    return distill.Tuned(blocks, norms)


class DecoderQuantizer:
    """Callable: scheme -> the decoder in that scheme, the same object for the same scheme.

    Args: as `quantize`.
        resume: called when a scheme has been worked out, where `begin` has ended what was going on before.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        weights: Weights,
        method: Method,
        sequences: Sequence[Tensor],
        begin: Begin,
        kept: Kept,
        resume: Callable[[], None],
    ) -> None:
        self._arguments = spec, weights, method
        self._sequences, self._begin, self._kept, self._resume = sequences, begin, kept, resume
        self._done: dict[WeightScheme, QuantizedDecoder] = {}

    def __call__(self, scheme: WeightScheme) -> QuantizedDecoder:
        if scheme not in self._done:
            begun: list[str] = []

            def begin(name: str, steps: int) -> Callable[[int], None]:
                begun.append(name)
                return self._begin(name, steps)

            self._done[scheme] = quantize(*self._arguments, scheme, self._sequences, begin, self._kept)
            if begun:
                self._resume()
        return self._done[scheme]
