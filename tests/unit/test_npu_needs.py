"""What compiling for the NPU is said to take, against what it took: docs/npu.md has the measured figures."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from pocketvlm.runtime.manifest import ImageSpec, ImageTokensSpec, TilingSpec
from pocketvlm.toolchain.backends.base import Needs
from pocketvlm.toolchain.backends.qnn.needs import needs
from pocketvlm.toolchain.backends.qnn.parts import cut
from pocketvlm.toolchain.backends.qnn.socs import SOCS
from pocketvlm.toolchain.checkpoint import Checkpoint
from pocketvlm.toolchain.prepare import prepare
from pocketvlm.toolchain.recipe import DecoderWeights, ExportRecipe, Qnn
from pocketvlm.toolchain.spec import ConnectorSpec, DecoderSpec, ModelSpec, RopeSpec, VisionSpec

ROOT = Path(__file__).parents[2]
CAPACITY = 2048
BLUELM = ModelSpec(
    architecture="bluelm_v",
    vision=VisionSpec("siglip", 1152, 27, 16, 4304, 384, 14, "gelu_pytorch_tanh", 1e-6, (27,)),
    connector=ConnectorSpec("concat2x2", 1152, 2560, 2560, "gelu", True, 27, 2),
    decoder=DecoderSpec("llama", 2560, 31, 20, 4, 128, 8192, 100352, 1e-5, RopeSpec(1e4), 4096),
    tiling=TilingSpec("single", 384, ((1, 1),), "never"),
    image=ImageSpec((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    image_tokens=ImageTokensSpec(14, 14, "tile_by_tile"),
    image_token="<image>",
    stop_tokens=(),
)


def test_layers_are_cut_evenly() -> None:
    assert [last - first for first, last in cut(27, 8)] == [7, 7, 6, 7]
    assert cut(31, 8)[-1][1] == 31
    assert cut(4, 8) == [(0, 4)]
    assert cut(0, 8) == [(0, 0)]


def test_full_size_is_told_about_what_it_took() -> None:
    told = needs(BLUELM, ExportRecipe(), CAPACITY)
    # All graphs on the CPU, which is more than the compiler takes for a part of 8 layers.
    assert told.ram_bytes == pytest.approx(2.03e9 + 1.45e9 + 1.03e9, rel=0.15)
    # The binaries.
    assert told.disk_bytes == pytest.approx(2.03e9, rel=0.1)
    # The embedding table in 8 bits; until the export has succeeded graphs that hold what the binaries hold, and the CPU's form
    # of the decoder and the output projection.
    assert sum(dict(told.shared_disk).values()) == pytest.approx(0.3e9 + 2.03e9 + 1.45e9 + 1.03e9, rel=0.15)
    one_part = needs(BLUELM, replace(ExportRecipe(), qnn=Qnn(layers_per_part=31)), CAPACITY)
    assert one_part.ram_bytes == pytest.approx(4 * 3.8e9, rel=0.3)
    assert one_part.disk_bytes == told.disk_bytes
    vision = needs(BLUELM, replace(ExportRecipe(), qnn=Qnn(stages=("vision",))), CAPACITY)
    assert on_disk(vision) < 0.3 * on_disk(told)
    assert vision.seconds < 0.3 * told.seconds


def test_binaries_that_do_not_share_weights_hold_them_twice() -> None:
    told, apart = (
        needs(BLUELM, replace(ExportRecipe(), qnn=Qnn(weight_sharing=shared)), CAPACITY).disk_bytes for shared in (True, False)
    )
    # The decoder's parts, each once for chunks and once for single positions.
    assert 1.0 < (apart - told) / (3 * 342.8e6 + 300e6) < 1.15


def test_longer_caches_take_room() -> None:
    """The mask of a chunk, and the cosines and sines."""
    short, long = (on_disk(needs(BLUELM, ExportRecipe(), capacity)) for capacity in (2048, 4096))
    masks = 2 * 4 * (5 * 128 * 2048) * 2
    tables = 2 * 4 * 128 * 2048
    cache = 2 * 8 * 4 * 128 * 2048
    assert long - short == pytest.approx(masks + tables + cache, rel=0.02)


def on_disk(needed: Needs) -> int:
    return needed.disk_bytes + sum(dict(needed.shared_disk).values())


@dataclass(frozen=True, slots=True)
class Measured:
    """An export of the demo model, and the most that its output's folder held meanwhile, in MB."""

    megabytes: float
    targets: tuple[str, ...] = ("qnn:SM8750", "ort-cpu")
    qnn: Qnn = field(default_factory=Qnn)


@pytest.mark.parametrize(
    "export",
    [
        Measured(19.4),
        # The graphs of the proxy are there anyway.
        Measured(19.4, qnn=Qnn(proxy=True)),
        Measured(15.5, targets=("qnn:SM8750",)),
        Measured(31.2, targets=(*(f"qnn:{name}" for name in SOCS), "ort-cpu"), qnn=Qnn(emulate="none")),
        Measured(16.5, targets=("qnn:SM8750",), qnn=Qnn(proxy=True, weight_sharing=False, emulate="all")),
        Measured(
            13.7, targets=("qnn:SM8750",), qnn=Qnn(vision_activations="float16", decoder_weights="per_channel", emulate="none")
        ),
    ],
)
def test_disk_is_a_little_more_than_was_measured(export: Measured) -> None:
    recipe = ExportRecipe(targets=export.targets, qnn=export.qnn, decoder_weights=DecoderWeights("rtn"))
    with Checkpoint.open(str(ROOT / "demo/model")) as checkpoint:
        told = prepare(checkpoint, recipe).estimate.disk_bytes / 1e6
    assert export.megabytes < told < 1.15 * export.megabytes
