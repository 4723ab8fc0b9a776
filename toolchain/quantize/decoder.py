"""The decoder's matrices as the targets ask for them: each scheme is worked out once an export, when it is first needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pocketvlm.toolchain.decoders import DECODERS
from pocketvlm.toolchain.quantize import distill, gptq
from pocketvlm.toolchain.quantize.block import BlockWeights
from pocketvlm.toolchain.quantize.scheme import WeightScheme
from pocketvlm.toolchain.spec import DecoderSpec
from pocketvlm.toolchain.torch_ops import Weights

Method = Literal["rtn", "gptq", "distill"]
# Begins a part of the work with so many steps; what it returns is called with 1 after each.
Begin = Callable[[str, int], Callable[[int], None]]


@dataclass(frozen=True, slots=True)
class QuantizedDecoder:
    """The decoder in one scheme.

    Attributes:
        blocks: canonical prefix of a matrix ("decoder.layers.0.q") -> its block weights.
        weights: all other parameters: those of the checkpoint, or what tuning has put in their place.
    """

    blocks: Callable[[str], BlockWeights]
    weights: Weights


def quantize(
    spec: DecoderSpec, weights: Weights, method: Method, scheme: WeightScheme, sequences: Sequence[Tensor], begin: Begin
) -> QuantizedDecoder:
    """Quantize the linear layers inside the decoder's layers.

    Args:
        weights: the checkpoint's parameters.
        sequences: calibration embeddings, float32 [batch, length, H] each; "rtn" needs none.
    """
    if method == "rtn":
        return QuantizedDecoder(lambda name: scheme.round(weights(f"{name}.weight")), weights)
    layer = DECODERS.load(spec.kind).layer
    known = gptq.quantize_decoder(spec, layer, weights, sequences, scheme, begin("GPTQ", spec.layers))
    if method == "gptq":
        return QuantizedDecoder(known.__getitem__, weights)
    rates = distill.Rates()
    tuned = distill.tune(spec, weights, known, sequences, scheme, rates, begin("distillation", rates.steps))
    return QuantizedDecoder(tuned.blocks.__getitem__, distill.overlaid(weights, tuned.norms))


class DecoderQuantizer:
    """Callable: scheme -> the decoder in that scheme, the same object for the same scheme.

    Args: as `quantize`.
        resume: called when a scheme has been worked out, since `begin` has ended what was going on before.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        weights: Weights,
        method: Method,
        sequences: Sequence[Tensor],
        begin: Begin,
        resume: Callable[[], None],
    ) -> None:
        self._arguments = spec, weights, method
        self._sequences, self._begin, self._resume = sequences, begin, resume
        self._done: dict[WeightScheme, QuantizedDecoder] = {}

    def __call__(self, scheme: WeightScheme) -> QuantizedDecoder:
        if scheme not in self._done:
            self._done[scheme] = quantize(*self._arguments, scheme, self._sequences, self._begin)
            self._resume()
        return self._done[scheme]
