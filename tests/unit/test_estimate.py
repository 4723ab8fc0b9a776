"""What "auto" comes to, and that the estimate counts what each method takes."""

from __future__ import annotations

from typing import Literal

import pytest

from pocketvlm.runtime.manifest import ImageSpec, ImageTokensSpec, TilingSpec
from pocketvlm.runtime.tiling import plan_tiles
from pocketvlm.toolchain.backends import BACKENDS
from pocketvlm.toolchain.estimate import Estimate, estimate
from pocketvlm.toolchain.recipe import Calibration, DecoderWeights, ExportRecipe
from pocketvlm.toolchain.spec import ConnectorSpec, DecoderSpec, ModelSpec, RopeSpec, VisionSpec

SMALL = DecoderSpec("llama", 576, 30, 9, 3, 64, 1536, 49152, 1e-5, RopeSpec(10000.0), 8192, tie_embeddings=True)
BILLION = DecoderSpec("llama", 2048, 16, 32, 8, 64, 8192, 128256, 1e-5, RopeSpec(10000.0), 8192, tie_embeddings=True)


def expected(decoder: DecoderSpec, recipe: ExportRecipe) -> Estimate:
    spec = ModelSpec(
        architecture="llava",
        vision=VisionSpec("siglip", 64, 2, 2, 128, 32, 16, "gelu", 1e-6, (2,)),
        connector=ConnectorSpec("mlp", 64, decoder.hidden_size, decoder.hidden_size, "gelu", True, 2),
        decoder=decoder,
        tiling=TilingSpec("single", 32, ((1, 1),), "never"),
        image=ImageSpec((0, 0, 0), (1, 1, 1)),
        image_tokens=ImageTokensSpec(2, 2, "tile_by_tile"),
        image_token="<image>",
        stop_tokens=(2,),
    )
    needs = [BACKENDS.load(target)(target).needs(spec, recipe) for target in recipe.targets]
    return estimate(spec, recipe, [plan_tiles(64, 64, spec.tiling, spec.image_tokens)], 1, 1000, needs)


def test_auto_is_the_best_method_that_fits_into_memory() -> None:
    assert expected(SMALL, ExportRecipe()).method == "distill"
    assert expected(BILLION, ExportRecipe()).method == "gptq"
    assert expected(SMALL, ExportRecipe(precision="fp32")).method == "rtn"


@pytest.mark.parametrize("decoder", [SMALL, BILLION])
def test_better_methods_take_more_time_and_memory(decoder: DecoderSpec) -> None:
    methods: tuple[Literal["rtn", "gptq", "distill"], ...] = ("rtn", "gptq", "distill")
    found = [expected(decoder, ExportRecipe(decoder_weights=DecoderWeights(method))) for method in methods]
    assert [item.method for item in found] == list(methods)
    assert found[0].seconds < found[1].seconds < found[2].seconds
    assert found[0].ram_bytes < found[1].ram_bytes < found[2].ram_bytes
    # What is kept for a later export comes on top of the bundle.
    assert found[0].disk_bytes < found[1].disk_bytes < found[2].disk_bytes


def test_distillation_holds_the_parameters_whatever_their_size() -> None:
    recipe = ExportRecipe(decoder_weights=DecoderWeights("distill"))
    found = expected(BILLION, recipe)
    assert found.keep_weights
    assert found.ram_bytes > 4 * 1.2e9 + 9 * 0.9e9


def test_text_that_the_model_writes_takes_time() -> None:
    plain, generated = (expected(SMALL, ExportRecipe(calibration=Calibration(text=text))) for text in (None, "generated"))
    assert generated.seconds > plain.seconds


def test_each_scheme_is_worked_out_by_itself() -> None:
    cpu, npu, both, two = (
        expected(BILLION, ExportRecipe(targets=targets))
        for targets in (("ort-cpu",), ("qnn:SM8750",), ("ort-cpu", "qnn:SM8750"), ("qnn:SM8750", "qnn:SM8650"))
    )
    rounded = expected(BILLION, ExportRecipe(decoder_weights=DecoderWeights("rtn")))
    once = cpu.seconds - rounded.seconds
    assert both.seconds > npu.seconds + 0.9 * once
    assert both.ram_bytes > max(cpu.ram_bytes, npu.ram_bytes) + 0.9e9
    # Two SoCs take the same graphs, but each is compiled for.
    assert two.seconds - npu.seconds < once
    assert 0.5e9 < two.disk_bytes - npu.disk_bytes < 0.5 * npu.disk_bytes
    # Without ort-cpu there is no decoder for the CPU in the bundle.
    assert npu.disk_bytes - both.disk_bytes < -0.5 * 0.9e9
