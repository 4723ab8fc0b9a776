"""GPTQ: better than rounding where inputs are correlated, equal to it where they are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pocketvlm.errors import CheckpointError
from pocketvlm.toolchain import decoders, torch_ops
from pocketvlm.toolchain.decoders import llama
from pocketvlm.toolchain.quantize.block import round_to_nearest
from pocketvlm.toolchain.quantize.gptq import quantize_decoder, quantize_matrix, search_ranges
from pocketvlm.toolchain.quantize.scheme import WeightScheme
from pocketvlm.toolchain.spec import DecoderSpec, RopeSpec
from pocketvlm.toolchain.torch_ops import EagerCache, TorchOps, rotary_table

GENERATOR = torch.Generator().manual_seed(0)


def correlated_inputs(count: int, size: int) -> torch.Tensor:
    mixing = torch.randn(size, size, generator=GENERATOR) * torch.logspace(0, -2, size)
    return torch.randn(count, size, generator=GENERATOR) @ mixing.T


def output_error(weight: torch.Tensor, quantized: np.ndarray, x: torch.Tensor) -> float:
    return float((x @ (weight - torch.from_numpy(quantized)).T).square().mean())


def test_output_error_is_far_below_rounding() -> None:
    x = correlated_inputs(2048, 128)
    weight = torch.randn(64, 128, generator=GENERATOR)
    blocks = quantize_matrix(weight, x.T @ x / len(x), WeightScheme())
    rounded = round_to_nearest(weight, 4, 32)
    assert blocks.codes.max() <= 15
    assert output_error(weight, blocks.dequantize(), x) < 0.35 * output_error(weight, rounded.dequantize(), x)


def test_white_inputs_give_plain_rounding_to_the_chosen_ranges() -> None:
    weight = torch.randn(16, 64, generator=GENERATOR)
    hessian = torch.eye(64)
    blocks = quantize_matrix(weight, hessian, WeightScheme(symmetric=True))
    scale, zero = search_ranges(weight.reshape(16, 2, 32), torch.ones(2, 32), 4, symmetric=True)
    expected = ((weight.reshape(16, 2, 32) / scale[..., None] + zero[..., None]).round().clamp(0, 15)).reshape(16, 64)
    np.testing.assert_array_equal(blocks.codes, expected.to(torch.uint8).numpy())


def test_dead_inputs_and_a_singular_hessian_are_survived() -> None:
    x = correlated_inputs(20, 96)  # fewer samples than inputs: the Hessian is singular
    x[:, 5] = 0
    weight = torch.randn(8, 96, generator=GENERATOR)
    blocks = quantize_matrix(weight, x.T @ x / len(x), WeightScheme())
    assert np.isfinite(blocks.dequantize()).all()


def test_inputs_that_overflow_are_the_checkpoints_fault() -> None:
    hessian = torch.full((64, 64), float("inf"))
    with pytest.raises(CheckpointError, match=r"GPTQ: .* overflow"):
        quantize_matrix(torch.randn(8, 64), hessian, WeightScheme())


def test_only_the_positions_in_use_get_rotary_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The config's largest position may be millions; a table of that length would take gigabytes."""
    made: list[int] = []

    def table(rope: RopeSpec, head_dim: int, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        made.append(positions)
        return rotary_table(rope, head_dim, positions)

    monkeypatch.setattr(torch_ops, "rotary_table", table)
    spec = DecoderSpec("llama", 64, 1, 2, 1, 32, 96, 40, 1e-5, RopeSpec(10000.0), max_positions=1 << 24)
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in llama.parameters(spec).items()}
    ops = TorchOps(weights.__getitem__)
    ops.attach_cache(spec, EagerCache())
    whole = decoders.decode(ops, spec, torch.randn(1, 700, 64, generator=generator), all_positions=True)
    assert whole.shape == (1, 700, 40)
    assert max(made) < 2048


def test_range_search_never_does_worse_than_the_full_range() -> None:
    blocks = torch.randn(10, 3, 32, generator=GENERATOR)
    importance = torch.rand(3, 32, generator=GENERATOR)
    scale, zero = search_ranges(blocks, importance, 4, symmetric=False)
    code = (blocks / scale[..., None] + zero[..., None]).round().clamp(0, 15)
    found = (((code - zero[..., None]) * scale[..., None] - blocks).square() * importance).sum()
    plain = round_to_nearest(blocks.reshape(10, 96), 4, 32).dequantize().reshape(10, 3, 32)
    full = ((torch.from_numpy(plain) - blocks).square() * importance).sum()
    assert float(found) <= float(full)


def test_a_whole_decoder_stays_closer_than_with_rounding() -> None:
    spec = DecoderSpec("llama", 64, 3, 4, 2, 16, 96, 80, 1e-5, RopeSpec(10000.0), 256)
    weights = {
        name: torch.randn(shape, generator=GENERATOR) * (0.15 if len(shape) > 1 else 0.2) + (len(shape) == 1)
        for name, shape in llama.parameters(spec).items()
    }
    sequences = [correlated_inputs(200, 64).reshape(1, 200, 64) for _ in range(3)]
    kept = [sequence.clone() for sequence in sequences]
    steps: list[int] = []
    blocks = quantize_decoder(spec, llama.layer, weights.__getitem__, sequences, WeightScheme(), steps.append)
    assert steps == [1, 1, 1]
    assert all(torch.equal(a, b) for a, b in zip(sequences, kept, strict=True))
    assert set(blocks) == {name[: -len(".weight")] for name in weights if ".layers." in name and weights[name].dim() == 2}

    def logits(table: dict[str, torch.Tensor]) -> torch.Tensor:
        ops = TorchOps(table.__getitem__)
        ops.attach_cache(spec, EagerCache())
        return decoders.decode(ops, spec, kept[0], all_positions=True)

    def replaced(values: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return weights | {f"{name}.weight": torch.from_numpy(value) for name, value in values.items()}

    exact = logits(weights)
    rounded = {name: round_to_nearest(weights[f"{name}.weight"], 4, 32).dequantize() for name in blocks}
    with_gptq = (logits(replaced({name: value.dequantize() for name, value in blocks.items()})) - exact).square().mean()
    with_rounding = (logits(replaced(rounded)) - exact).square().mean()
    assert float(with_gptq) < 0.7 * float(with_rounding)
