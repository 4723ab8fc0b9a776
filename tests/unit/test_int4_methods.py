"""Every method in every scheme: better than rounding on its own data, deterministic, in the target's own numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from pocketvlm.toolchain import decoders
from pocketvlm.toolchain.decoders import llama
from pocketvlm.toolchain.kept import Kept
from pocketvlm.toolchain.quantize import distill, lpbq
from pocketvlm.toolchain.quantize.block import BlockWeights
from pocketvlm.toolchain.quantize.decoder import DecoderQuantizer, Method, QuantizedDecoder, quantize
from pocketvlm.toolchain.quantize.scheme import WeightScheme
from pocketvlm.toolchain.spec import DecoderSpec, RopeSpec
from pocketvlm.toolchain.torch_ops import EagerCache, TorchOps, Weights

SPEC = DecoderSpec("llama", 64, 2, 4, 2, 16, 96, 80, 1e-5, RopeSpec(10000.0), 256)
SCHEMES = {
    "block": WeightScheme(),
    "block, symmetric": WeightScheme(symmetric=True),
    "channel": WeightScheme("channel", symmetric=True),
    "lpbq": WeightScheme("lpbq", 16, symmetric=True),
}


def tiny() -> tuple[dict[str, Tensor], list[Tensor]]:
    """Random weights, and sequences whose entries go together."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=generator) * (0.15 if len(shape) > 1 else 0.2) + (len(shape) == 1)
        for name, shape in llama.parameters(SPEC).items()
    }
    mixing = torch.randn(64, 64, generator=generator) * torch.logspace(0, -2, 64)
    return weights, [torch.randn(2, 120, 64, generator=generator) @ mixing.T for _ in range(3)]


def begin(name: str, steps: int) -> distill.Advance:
    return lambda count: None


def logits(weights: Weights, window: Tensor) -> Tensor:
    ops = TorchOps(weights)
    ops.attach_cache(SPEC, EagerCache())
    return decoders.decode(ops, SPEC, window, all_positions=True)


def divergence(weights: dict[str, Tensor], found: QuantizedDecoder, sequences: list[Tensor]) -> float:
    """Mean KL in nats from the float decoder's distribution to the quantized one's."""
    matrices = {name for name in weights if ".layers." in name and weights[name].dim() == 2}

    def quantized(name: str) -> Tensor:
        if name in matrices:
            return torch.from_numpy(found.blocks(name.removesuffix(".weight")).dequantize())
        return found.weights(name)

    total = []
    for window in sequences:
        exact = logits(weights.__getitem__, window).log_softmax(-1)
        total.append((exact.exp() * (exact - logits(quantized, window).log_softmax(-1))).sum(-1).mean())
    return float(torch.stack(total).mean())


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_each_method_is_better_than_the_one_before(scheme: WeightScheme) -> None:
    weights, sequences = tiny()
    methods: tuple[Method, ...] = ("rtn", "gptq", "distill")
    found = [
        divergence(weights, quantize(SPEC, weights.__getitem__, method, scheme, sequences, begin), sequences)
        for method in methods
    ]
    assert found[1] < 0.8 * found[0]
    assert found[2] < 0.95 * found[1]


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_the_same_twice_and_never_other_numbers_than_the_kernels_have(scheme: WeightScheme) -> None:
    weights, sequences = tiny()
    once, again = (quantize(SPEC, weights.__getitem__, "distill", scheme, sequences, begin) for _ in range(2))
    for prefix in ("decoder.layers.0.q", "decoder.layers.1.down"):
        one, other = once.blocks(prefix), again.blocks(prefix)
        np.testing.assert_array_equal(one.codes, other.codes)
        np.testing.assert_array_equal(one.scales, other.scales)
        assert one.codes.max() <= 15
        assert (one.scales > 0).all()
        assert one.symmetric == scheme.symmetric
        if scheme.granularity == "lpbq":
            np.testing.assert_array_equal(lpbq.project(one.scales), one.scales)
        if scheme.granularity == "channel":
            assert one.scales.shape == (len(one.codes), 1)
    norm = "decoder.layers.0.norm1.weight"
    assert torch.equal(once.weights(norm), again.weights(norm))
    assert not torch.equal(once.weights(norm), weights[norm])


def test_no_steps_change_nothing() -> None:
    weights, sequences = tiny()
    scheme = SCHEMES["lpbq"]
    start = {"decoder.layers.0.q": scheme.round(weights["decoder.layers.0.q.weight"])}
    tuned = distill.tune(SPEC, weights.__getitem__, start, sequences, scheme, distill.Rates(steps=0), lambda count: None)
    np.testing.assert_array_equal(tuned.blocks["decoder.layers.0.q"].codes, start["decoder.layers.0.q"].codes)
    np.testing.assert_array_equal(tuned.blocks["decoder.layers.0.q"].scales, start["decoder.layers.0.q"].scales)


def test_a_scheme_is_worked_out_once_and_only_when_asked_for(tmp_path: Path) -> None:
    weights, sequences = tiny()
    begun: list[str] = []
    resumed: list[int] = []
    taken: list[str] = []

    def note(name: str, steps: int) -> distill.Advance:
        begun.append(name)
        return lambda count: None

    def quantizer() -> DecoderQuantizer:
        return DecoderQuantizer(
            SPEC,
            weights.__getitem__,
            "distill",
            sequences,
            note,
            Kept(tmp_path, [], taken.append),
            lambda: resumed.append(1),
        )

    decoder = quantizer()
    assert begun == []
    assert decoder(SCHEMES["block"]) is decoder(WeightScheme())
    works = ("GPTQ of the decoder", "distillation of the decoder")
    assert (begun, resumed) == ([f"{work}: INT4, in blocks of 32" for work in works], [1])
    first = decoder(SCHEMES["channel"])
    assert begun[2:] == [f"{work}: INT4, one scale a channel" for work in works]
    assert (resumed, taken) == ([1, 1], [])
    # The next export takes what this one has kept, and says so.
    again = quantizer()(SCHEMES["channel"])
    assert (len(begun), len(resumed), taken) == (4, 2, begun[2:])
    for name in ("decoder.layers.0.q", "decoder.layers.1.down"):
        one, other = first.blocks(name), again.blocks(name)
        np.testing.assert_array_equal(one.dequantize(), other.dequantize())
        assert (one.bits, one.block_size, one.inputs) == (other.bits, other.block_size, other.inputs)
    norm = "decoder.layers.0.norm1.weight"
    assert torch.equal(first.weights(norm), again.weights(norm))
    assert not torch.equal(first.weights(norm), weights[norm])


def dequantize_linear(blocks: BlockWeights, *, per_row: bool) -> np.ndarray:
    """The same numbers by ONNX's DequantizeLinear, in ONNX Runtime."""
    scales = blocks.scales[:, 0] if per_row else blocks.scales
    zeros = blocks.zeros[:, 0] if per_row else blocks.zeros
    attributes = {"axis": 0} if per_row else {"axis": 1, "block_size": blocks.block_size}
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["codes", "scales", "zeros"], ["values"], **attributes)],
        "dequantize",
        [
            helper.make_tensor_value_info("codes", TensorProto.UINT8, blocks.codes.shape),
            helper.make_tensor_value_info("scales", TensorProto.FLOAT, scales.shape),
            helper.make_tensor_value_info("zeros", TensorProto.UINT8, zeros.shape),
        ],
        [helper.make_tensor_value_info("values", TensorProto.FLOAT, blocks.codes.shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values: np.ndarray = session.run(None, {"codes": blocks.codes, "scales": scales, "zeros": zeros})[0]
    return values[:, : blocks.inputs]


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_values_are_those_of_onnx_runtimes_dequantize_linear(scheme: WeightScheme) -> None:
    weights, sequences = tiny()
    blocks = quantize(SPEC, weights.__getitem__, "gptq", scheme, sequences, begin).blocks("decoder.layers.0.down")
    expected = dequantize_linear(blocks, per_row=scheme.granularity == "channel")
    np.testing.assert_allclose(blocks.dequantize(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [
        (WeightScheme(), 4 + 32 / 32 + 4 / 32),
        (WeightScheme(symmetric=True), 4 + 32 / 32),
        (WeightScheme("channel", symmetric=True), 4 + 32 / 576),
        (WeightScheme("lpbq", symmetric=True), 4 + 4 / 32 + 32 / 576),
    ],
)
def test_bits_per_weight_count_codes_scales_and_zero_points(scheme: WeightScheme, bits: float) -> None:
    assert scheme.bits_per_weight(576) == pytest.approx(bits)


@pytest.mark.parametrize("granularity", ["channel", "lpbq"])
def test_hardware_without_zero_points_is_not_given_any(granularity: str) -> None:
    with pytest.raises(ValueError, match="symmetric"):
        WeightScheme(granularity)  # type: ignore[arg-type]
