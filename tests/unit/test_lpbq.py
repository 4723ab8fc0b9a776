"""Scales of LPBQ."""

from __future__ import annotations

import numpy as np

from pocketvlm.toolchain.quantize.lpbq import factor, project


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
