"""What compiling for the NPU is said to take, against what it took: docs/npu.md has the measured figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pocketvlm.runtime.manifest import ImageSpec, ImageTokensSpec, TilingSpec
from pocketvlm.toolchain.backends.qnn.needs import needs
from pocketvlm.toolchain.backends.qnn.parts import cut
from pocketvlm.toolchain.recipe import ExportRecipe, Qnn
from pocketvlm.toolchain.spec import ConnectorSpec, DecoderSpec, ModelSpec, RopeSpec, VisionSpec

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
    told = needs(BLUELM, ExportRecipe())
    # All graphs on the CPU, which is more than the compiler takes for a part of 8 layers.
    assert told.ram_bytes == pytest.approx(2.03e9 + 1.45e9 + 1.03e9, rel=0.15)
    # The binaries and the embedding table in 8 bits; until the export has succeeded as many bytes of graphs, and the CPU's form
    # of the decoder and the output projection.
    assert told.disk_bytes == pytest.approx(2 * 2.03e9 + 0.3e9 + 1.45e9 + 1.03e9, rel=0.15)
    one_part = needs(BLUELM, replace(ExportRecipe(), qnn=Qnn(layers_per_part=31)))
    assert one_part.ram_bytes == pytest.approx(4 * 3.8e9, rel=0.3)
    assert one_part.disk_bytes == told.disk_bytes
    vision = needs(BLUELM, replace(ExportRecipe(), qnn=Qnn(stages=("vision",))))
    assert vision.disk_bytes < 0.3 * told.disk_bytes
    assert vision.seconds < 0.3 * told.seconds
