"""Scales of LPBQ."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pocketvlm.toolchain.quantize.gptq import quantize_matrix
from pocketvlm.toolchain.quantize.lpbq import factor, project
from pocketvlm.toolchain.quantize.scheme import WeightScheme


def test_worked_example() -> None:
    steps, channel = factor(np.array([[0.15, 0.05, 0.001]], np.float32))
    assert steps.tolist() == [[15, 5, 1]]
    np.testing.assert_allclose(channel, [0.01], rtol=1e-6)


def test_projected_scales_are_a_fixed_point_and_near() -> None:
    scales = np.exp(np.random.default_rng(0).normal(0, 0.5, (64, 18))).astype(np.float32)
    projected = project(scales)
    np.testing.assert_array_equal(project(projected), projected)
    channel = scales.max(1, keepdims=True) / 15
    wide = scales > channel
    assert np.abs(projected - scales)[wide].max() <= (0.5 * channel.max()) * 1.0001


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_block_of_zeros_costs_its_row_nothing(method: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 128) * 0.02
    weight[1, 32:64] = 0
    scheme = WeightScheme("lpbq", symmetric=True)
    inputs = torch.randn(512, 128)
    found = scheme.round(weight) if method == "rtn" else quantize_matrix(weight, inputs.T @ inputs / 512, scheme)
    errors = (torch.from_numpy(found.dequantize()) - weight).norm(dim=1) / weight.norm(dim=1)
    assert float(errors.max()) < 0.15


def test_rows_of_zeros_stay_zero() -> None:
    found = WeightScheme("lpbq", symmetric=True).round(torch.zeros(2, 64))
    assert not found.dequantize().any()
    assert np.isfinite(found.scales).all()
