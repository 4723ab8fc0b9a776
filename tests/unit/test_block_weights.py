"""Block quantization against ONNX Runtime's own kernels, which read the packed bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from pocketvlm.runtime.engines import int8_products
from pocketvlm.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from pocketvlm.runtime.manifest import TensorSpec
from pocketvlm.toolchain.backends.onnx_graph import GraphWriter, TensorFile
from pocketvlm.toolchain.backends.ort_decoder_ops import OrtDecoderOps
from pocketvlm.toolchain.backends.ort_ops import INT8_ENGINE_OPTIONS, OrtOps, Scheme
from pocketvlm.toolchain.quantize.block import BlockWeights, concatenate, per_channel_int8, round_to_nearest
from pocketvlm.toolchain.spec import DecoderSpec, RopeSpec

DECODER = DecoderSpec("llama", 96, 1, 2, 1, 48, 64, 50, 1e-5, RopeSpec(10000.0), 64)


def random_weight(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[False, True], ids=["this processor", "one that saturates"])
def either_processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As here, and with the weights made unsigned as on processors whose products saturate."""
    if request.param:
        monkeypatch.setattr(int8_products, "saturating", lambda: True)


def run_linear(folder: Path, scheme: Scheme, weights: dict[str, torch.Tensor], x: np.ndarray, names: list[str]) -> np.ndarray:
    with TensorFile(folder / "weights.data") as tensors:
        graph = GraphWriter("linear", tensors)
        ops = OrtOps(graph, weights.__getitem__, scheme)
        source = graph.input(TensorSpec("x", "float32", ("n", x.shape[1])))
        result = ops.linear(source, names[0], bias=f"{names[0]}.bias" in weights)
        graph.rename_output(result, "y")
        graph.output(TensorSpec("y", "float32", ("n", weights[f"{names[0]}.weight"].shape[0])))
    graph.save(folder / "linear.onnx")
    return OnnxRuntimeEngine().open(folder / "linear.onnx", INT8_ENGINE_OPTIONS, 1).run({"x": x})["y"]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("columns", [32, 96, 128])
def test_matmulnbits_reads_what_we_pack(tmp_path: Path, bits: int, symmetric: bool, columns: int) -> None:
    weight = random_weight(40, columns)
    blocks = round_to_nearest(weight, bits, 32, symmetric=symmetric)
    x = np.eye(columns, dtype=np.float32)
    scheme = Scheme("blocks", lambda name: blocks)
    got = run_linear(tmp_path, scheme, {"a.weight": weight}, x, ["a"])
    # Rows of the identity are exact in the kernel's INT8 activations up to its own rounding of 1.0.
    np.testing.assert_allclose(got, blocks.dequantize().T, atol=2e-2 * np.abs(blocks.dequantize()).max())
    assert np.corrcoef(got.ravel(), blocks.dequantize().T.ravel())[0, 1] > 0.99999


@pytest.mark.parametrize("bits", [4, 8])
def test_error_is_at_most_half_a_step(bits: int) -> None:
    weight = random_weight(17, 96, seed=3)
    blocks = round_to_nearest(weight, bits, 32)
    step = np.repeat(blocks.scales, 32, axis=1)
    assert np.all(np.abs(blocks.dequantize() - weight.numpy()) <= 0.5 * step + 1e-6)


def test_inputs_that_do_not_fill_the_last_block(tmp_path: Path) -> None:
    weight = random_weight(8, 80)
    blocks = round_to_nearest(weight, 8, 32)
    assert blocks.codes.shape == (8, 96)
    assert blocks.dequantize().shape == (8, 80)
    x = np.random.default_rng(0).standard_normal((5, 80)).astype(np.float32)
    got = run_linear(tmp_path, Scheme("blocks", lambda name: blocks), {"a.weight": weight}, x, ["a"])
    np.testing.assert_allclose(got, x @ weight.numpy().T, atol=0.2)


def test_zero_and_constant_blocks_are_exact() -> None:
    weight = torch.zeros(3, 64)
    weight[1] = 0.75
    weight[2] = -2.0
    np.testing.assert_allclose(round_to_nearest(weight, 4, 32).dequantize(), weight.numpy(), atol=1e-6)


@pytest.mark.usefixtures("either_processor")
def test_bias_is_added(tmp_path: Path) -> None:
    weight = random_weight(8, 64)
    bias = torch.arange(8, dtype=torch.float32)
    x = np.zeros((2, 64), np.float32)
    for number, scheme in enumerate(
        [Scheme("float32"), Scheme("int8"), Scheme("blocks", lambda name: round_to_nearest(weight, 4, 32))]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        got = run_linear(folder, scheme, {"a.weight": weight, "a.bias": bias}, x, ["a"])
        np.testing.assert_allclose(got, np.tile(bias.numpy(), (2, 1)), atol=1e-5)


@pytest.mark.usefixtures("either_processor")
def test_int8_is_close_to_float(tmp_path: Path) -> None:
    weight = random_weight(64, 128)
    x = np.random.default_rng(1).standard_normal((50, 128)).astype(np.float32)
    got = run_linear(tmp_path, Scheme("int8"), {"a.weight": weight}, x, ["a"])
    exact = x @ weight.numpy().T
    assert (got * exact).sum() / np.linalg.norm(got) / np.linalg.norm(exact) > 0.9995


@pytest.mark.usefixtures("either_processor")
def test_a_large_activation_of_one_position_takes_no_precision_from_the_others(tmp_path: Path) -> None:
    weight = random_weight(64, 128)
    x = np.random.default_rng(1).standard_normal((50, 128)).astype(np.float32)
    x[0, 5] = 500.0
    got = run_linear(tmp_path, Scheme("int8"), {"a.weight": weight}, x, ["a"])[1:]
    exact = x[1:] @ weight.numpy().T
    assert (got * exact).sum() / np.linalg.norm(got) / np.linalg.norm(exact) > 0.9995


@pytest.mark.usefixtures("either_processor")
def test_int8_products_do_not_saturate(tmp_path: Path) -> None:
    """Two of the largest codes' products exceed 16 bits, which some x86 processors add them up in."""
    weights = {"a.weight": torch.ones(8, 128), "b.weight": torch.ones(8, 128)}
    x = np.ones((4, 128), np.float32)
    np.testing.assert_allclose(run_linear(tmp_path, Scheme("int8"), weights, x, ["a"]), np.full((4, 8), 128.0), rtol=1e-2)


def test_per_channel_scales_belong_to_their_rows() -> None:
    weight = random_weight(4, 16)
    weight[2] *= 100
    codes, scales = per_channel_int8(weight)
    np.testing.assert_allclose((codes.astype(np.float32) * scales).T, weight.numpy(), atol=float(scales.max()) * 0.51)
    assert np.all(np.abs(codes).max(0) == 127)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_gather_reads_the_same_bytes_as_matmul(tmp_path: Path, bits: int, symmetric: bool) -> None:
    table = random_weight(50, 96, seed=5)
    blocks = round_to_nearest(table, bits, 32, symmetric=symmetric)
    assert blocks.symmetric == symmetric
    with TensorFile(tmp_path / "weights.data") as tensors:
        graph = GraphWriter("embed", tensors)
        scheme = Scheme("blocks", lambda name: blocks)
        ops = OrtDecoderOps(graph, {"t.weight": table}.__getitem__, scheme, scheme, DECODER, None, 64)
        ids = graph.input(TensorSpec("ids", "int64", (1, "n")))
        graph.rename_output(ops.embedding(ids, "t"), "y")
        graph.output(TensorSpec("y", "float32", (1, "n", 96)))
    graph.save(tmp_path / "embed.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "embed.onnx"), providers=["CPUExecutionProvider"])
    wanted = np.array([[0, 49, 7, 7]])
    np.testing.assert_allclose(session.run(None, {"ids": wanted})[0][0], blocks.dequantize()[wanted[0]], atol=1e-6)


def test_concatenated_matrices_keep_their_rows() -> None:
    parts = [round_to_nearest(random_weight(rows, 64, seed=rows), 4, 32) for rows in (3, 5)]
    whole = concatenate(parts)
    assert isinstance(whole, BlockWeights)
    np.testing.assert_array_equal(whole.dequantize(), np.concatenate([part.dequantize() for part in parts]))


def test_a_matrix_is_written_once_for_two_graphs(tmp_path: Path) -> None:
    blocks = round_to_nearest(random_weight(512, 64), 8, 32)
    with TensorFile(tmp_path / "weights.data") as tensors:
        first = OrtOps(GraphWriter("a", tensors), lambda name: torch.zeros(1), Scheme("blocks"))
        names = first.block_initializers("t", blocks)
        size = (tmp_path / "weights.data").stat().st_size
        second = OrtOps(GraphWriter("b", tensors), lambda name: torch.zeros(1), Scheme("blocks"))
        assert second.block_initializers("t", blocks) == names
    assert (tmp_path / "weights.data").stat().st_size >= size
    assert (tmp_path / "weights.data").stat().st_size < 2 * blocks.codes.nbytes
