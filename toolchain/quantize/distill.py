"""Tuning of a quantized decoder against the float one: the last step of method "distill".

GPTQ makes each matrix good by itself. Here all of them are tuned together, so that the whole decoder's next-token
distribution comes close to that of the float decoder: gradients of the Kullback-Leibler divergence move the scales and the
norms' weights, while codes and zero points stay (EfficientQAT, arXiv 2407.11062, section 3.3). What is stored has the same
form and size as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from pocketvlm.toolchain import decoders
from pocketvlm.toolchain.decoders import DECODERS
from pocketvlm.toolchain.quantize.block import BlockWeights
from pocketvlm.toolchain.quantize.scheme import WeightScheme
from pocketvlm.toolchain.spec import DecoderSpec
from pocketvlm.toolchain.torch_ops import EagerCache, TorchOps, Weights

Advance = Callable[[int], None]

# Positions of a window: what is differentiated at once.
WINDOW = 512
# For a matrix's value, its gradient and its code.
BYTES_A_WEIGHT = 9
WINDOWS_A_STEP = 2
_WARM_UP = 5
_FIRST_MOMENT, _SECOND_MOMENT = 0.9, 0.99
_EPSILON = 1e-12


@dataclass(frozen=True, slots=True)
class Rates:
    """Steps of Adam, and how far one moves scales and norms at most, relative to themselves."""

    steps: int = 40
    scales: float = 2e-3
    norms: float = 2e-3


@dataclass(frozen=True, slots=True)
class Tuned:
    """Block weights by canonical prefix, and the norms' weights that belong with them by canonical name."""

    blocks: dict[str, BlockWeights]
    norms: dict[str, Tensor]


class _Adam:
    """Adam (arXiv 1412.6980) for one tensor, which it changes in place."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self._first, self._second = torch.zeros_like(value), torch.zeros_like(value)
        self._count = 0

    def move(self, gradient: Tensor, rate: float) -> None:
        self._count += 1
        self._first.lerp_(gradient, 1 - _FIRST_MOMENT)
        self._second.mul_(_SECOND_MOMENT).addcmul_(gradient, gradient, value=1 - _SECOND_MOMENT)
        size = (self._second / (1 - _SECOND_MOMENT**self._count)).sqrt_().add_(_EPSILON)
        self.value.addcdiv_(self._first, size, value=-rate / (1 - _FIRST_MOMENT**self._count))


class _Matrix:
    """A quantized matrix whose codes stay as they are while its scales move.

    LPBQ's steps stay, too, and its channels' scales move: a step is too coarse to be reached by small moves.
    """

    def __init__(self, blocks: BlockWeights, scheme: WeightScheme) -> None:
        self._start, self._scheme = blocks, scheme
        self._scales = torch.from_numpy(blocks.scales)
        shared = scheme.granularity == "lpbq"
        self._factors = _Adam(torch.ones(len(self._scales), 1 if shared else self._scales.shape[1]))

    def _steps(self) -> Tensor:
        """What the scales multiply: float32 [out, blocks, block_size]."""
        start = self._start
        codes = torch.from_numpy(start.codes).reshape(*start.scales.shape, start.block_size)
        return codes.float().sub_(torch.from_numpy(start.zeros)[..., None])

    def _moved(self) -> Tensor:
        return self._scheme.representable(self._scales * self._factors.value)

    def value(self) -> Tensor:
        """Float32 [out, in]."""
        values = self._steps().mul_(self._moved()[..., None])
        return values.reshape(len(values), -1)[:, : self._start.inputs].contiguous()

    def move(self, gradient: Tensor, rate: float) -> None:
        """One step against `gradient` [out, in] of the loss by `value`."""
        steps = self._steps()
        padded = functional.pad(gradient, (0, steps[0].numel() - gradient.shape[1])).reshape(steps.shape)
        by_factor = steps.mul_(padded).sum(-1).mul_(self._scales)
        if self._factors.value.shape != by_factor.shape:
            by_factor = by_factor.sum(1, keepdim=True)
        self._factors.move(by_factor, rate)

    def blocks(self) -> BlockWeights:
        """What is stored."""
        return replace(self._start, scales=self._moved().numpy())


def windows(sequences: Sequence[Tensor]) -> list[Tensor]:
    """Calibration embeddings [batch, length, H] each, cut into windows [1, up to 512, H]."""
    rows = [row[None] for sequence in sequences for row in sequence]
    return [window for row in rows for window in row.split(WINDOW, 1)]


def tune(
    spec: DecoderSpec,
    weights: Weights,
    start: Mapping[str, BlockWeights],
    sequences: Sequence[Tensor],
    scheme: WeightScheme,
    rates: Rates,
    advance: Advance,
) -> Tuned:
    """Tune all matrices of a decoder together. Takes `BYTES_A_WEIGHT` for each of their weights, beside `weights`.

    Args:
        weights: float parameters; read anew for every window, so they should be in memory.
        start: block weights by canonical prefix ("decoder.layers.0.q"), of this scheme.
        sequences: calibration embeddings, float32 [batch, length, H] each.
        advance: called with 1 after every step.
    """
    matrices = {f"{name}.weight": _Matrix(blocks, scheme) for name, blocks in start.items()}
    norms = {name: _Adam(weights(name).clone()) for name in _norms(spec)}
    norm_rates = {name: rates.norms * float(norm.value.abs().mean()) for name, norm in norms.items()}
    data = windows(sequences)
    if not data:
        raise ValueError("no calibration data")
    wanted: dict[int, Tensor] = {}
    order = _endless_order(len(data))
    for step in range(rates.steps):
        share = min(1.0, (step + 1) / _WARM_UP) * (1 - step / rates.steps)
        leaves = {name: matrix.value().requires_grad_() for name, matrix in matrices.items()}
        leaves |= {name: norm.value.clone().requires_grad_() for name, norm in norms.items()}
        numbers = [next(order) for _ in range(WINDOWS_A_STEP)]
        positions = sum(data[number].shape[1] for number in numbers)
        for number in numbers:
            with torch.no_grad():
                if number not in wanted:
                    wanted[number] = _layers(spec, weights, data[number])
                target = _logits(spec, weights, wanted[number])
            tuned = overlaid(weights, leaves)
            logits = _logits(spec, tuned, _layers(spec, tuned, data[number]))
            # The divergence's own derivative: what autograd would keep of two softmaxes is more than all else.
            torch.autograd.backward(logits, (logits.detach().softmax(-1) - target.softmax(-1)) / positions)
        with torch.no_grad():
            for name, matrix in matrices.items():
                matrix.move(_gradient(leaves[name]), rates.scales * share)
            for name, norm in norms.items():
                norm.move(_gradient(leaves[name]), norm_rates[name] * share)
        advance(1)
    found = {name.removesuffix(".weight"): matrix.blocks() for name, matrix in matrices.items()}
    return Tuned(found, {name: norm.value for name, norm in norms.items()})


def _layers(spec: DecoderSpec, weights: Weights, window: Tensor) -> Tensor:
    """What the last layer gives for embeddings [1, L, H], before the last norm."""
    ops = TorchOps(weights)
    ops.attach_cache(spec, EagerCache())
    return decoders.layers(ops, spec, window)


def _logits(spec: DecoderSpec, weights: Weights, hidden: Tensor) -> Tensor:
    found: Tensor = DECODERS.load(spec.kind).logits(TorchOps(weights), spec, hidden, all_positions=True)
    return found


def overlaid(weights: Weights, replaced: Mapping[str, Tensor]) -> Weights:
    """`weights` with some of them replaced."""
    return lambda name: replaced[name] if name in replaced else weights(name)


def _norms(spec: DecoderSpec) -> list[str]:
    shapes = DECODERS.load(spec.kind).parameters(spec)
    return [name for name, shape in shapes.items() if len(shape) == 1 and name.endswith(".weight")]


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _endless_order(count: int) -> Iterator[int]:
    """0 .. count - 1 in random order, then in another one, and so on; the same every time."""
    generator = torch.Generator().manual_seed(0)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
