"""What a recipe may ask of the NPU: settings without effect there are refused by name, those of other targets are not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pocketvlm.errors import SettingError
from pocketvlm.toolchain.backends.qnn.settings import check_settings
from pocketvlm.toolchain.backends.qnn.socs import SOCS
from pocketvlm.toolchain.recipe import DecoderWeights, ExportRecipe, KvCache, OrtCpu, Qnn
from pocketvlm.toolchain.spec import ModelSpec

from .test_npu_needs import BLUELM

NPU = ("qnn:SM8550", "qnn:SM8750")
BOTH = ("qnn:SM8550", "ort-cpu")
NARROW = replace(
    BLUELM,
    vision=replace(BLUELM.vision, intermediate_size=4312),
    decoder=replace(BLUELM.decoder, intermediate_size=8208, head_dim=16),
)


def check(recipe: ExportRecipe, spec: ModelSpec = BLUELM, targets: tuple[str, ...] = NPU) -> None:
    check_settings("qnn:SM8550", SOCS["SM8550"], spec, replace(recipe, targets=targets))


def test_defaults_and_what_the_npu_does_in_any_case_are_taken() -> None:
    check(ExportRecipe())
    check(ExportRecipe(kv_cache=KvCache("int8", "per_tensor"), lm_head_bits=8, prefill_weights="int4", embedding_bits=4))
    check(ExportRecipe(decoder_weights=DecoderWeights("gptq", 64, symmetric=True), chunk_size=64, max_seq_len=1024))
    check(ExportRecipe(qnn=Qnn(("decoder", "vision"), 4, "float16", "per_channel", "split", 2, 1.0, 8, True, False, "all")))


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        (
            ExportRecipe(ort_cpu=OrtCpu("fastest")),
            r"ort_cpu.arm_kernels: fastest is .* same with either \(leave it out, or",
        ),
        (ExportRecipe(lm_head_bits=4), r"lm_head_bits: 4 is .* output projection of 8 bits \(leave it out, or"),
        (ExportRecipe(prefill_weights="int8"), "prefill_weights: int8 is .* same weights"),
        (ExportRecipe(kv_cache=KvCache("int8", "per_channel")), "kv_cache.granularity: per_channel is .* one scale"),
        (ExportRecipe(kv_cache=KvCache("float32")), "kv_cache.dtype: float32 is .* cache in 8 bits"),
        (ExportRecipe(vision_batch=2), r"vision_batch: 2 is .*\(set qnn.vision_batch, or"),
        (ExportRecipe(fixed_vision_batch=True), "fixed_vision_batch: true is .* exactly qnn.vision_batch tiles"),
    ],
)
def test_a_setting_that_the_npu_does_not_heed_needs_a_target_that_does(recipe: ExportRecipe, told: str) -> None:
    with pytest.raises(SettingError, match=f"^{told}.*add ort-cpu to `targets`") as caught:
        check(recipe)
    assert caught.value.key == told.partition(":")[0]
    check(recipe, targets=BOTH)


def test_a_tied_table_takes_the_bits_of_the_output_projection() -> None:
    tied = replace(BLUELM, decoder=replace(BLUELM.decoder, tie_embeddings=True))
    check(ExportRecipe(lm_head_bits=4), tied)


@pytest.mark.parametrize(
    ("qnn", "told"),
    [
        (Qnn(("vision",), attention="split"), r"qnn.attention is split, and .* the decoder to .*add decoder to qnn.stages"),
        (Qnn(("vision",), decoder_weights="per_channel"), "qnn.decoder_weights is per_channel"),
        (Qnn(("decoder",), vision_batch=2), r"qnn.vision_batch is 2, and .* the vision to .*add vision to qnn.stages"),
        (Qnn(("decoder",), vision_activations="float16"), "qnn.vision_activations is float16"),
    ],
)
def test_a_setting_of_a_half_that_is_not_compiled(qnn: Qnn, told: str) -> None:
    with pytest.raises(SettingError, match=told):
        check(ExportRecipe(qnn=qnn), targets=BOTH)
    with pytest.raises(SettingError, match="leaves the other half to target ort-cpu"):
        check(ExportRecipe(qnn=qnn))
    check(ExportRecipe(qnn=Qnn(qnn.stages)), targets=BOTH)


@pytest.mark.parametrize(
    ("qnn", "told"),
    [
        (Qnn(vtcm_mb=9), r"qnn.vtcm_mb is 9, and SM8550 has 8 MB on chip \(take at most 8"),
        (Qnn(attention="fused"), r"qnn.attention is 'fused' \(take joined or split\)"),  # type: ignore[arg-type]
        (Qnn(emulate="some"), "qnn.emulate is 'some'"),  # type: ignore[arg-type]
    ],
)
def test_a_value_that_the_chip_or_nobody_knows(qnn: Qnn, told: str) -> None:
    with pytest.raises(SettingError, match=told):
        check(ExportRecipe(qnn=qnn), targets=BOTH)


def test_rows_that_blocks_do_not_fill() -> None:
    told = r"float16 takes widths divisible by 16; vision.layers.0.down has 4312 inputs \(set qnn.vision_activations: int16"
    half = ExportRecipe(qnn=Qnn(vision_activations="float16", decoder_weights="per_channel"))
    with pytest.raises(SettingError, match=told):
        check(half, NARROW)
    told = r"block_size 32 does not divide the 8208 inputs of decoder.layers.0.down \(take one that does, or .*per_channel"
    with pytest.raises(SettingError, match=told):
        check(ExportRecipe(), NARROW)
    check(ExportRecipe(decoder_weights=DecoderWeights(block_size=16)), NARROW)
    check(ExportRecipe(qnn=Qnn(decoder_weights="per_channel")), NARROW)
    check(half)
    # What does not run on the NPU may be as it is.
    check(ExportRecipe(qnn=Qnn(("vision",))), NARROW, BOTH)
    check(ExportRecipe(qnn=Qnn(("decoder",), decoder_weights="per_channel")), NARROW, BOTH)


def test_a_block_longer_than_a_row_is_one_scale_for_the_row() -> None:
    decoder = replace(BLUELM.decoder, hidden_size=72, heads=4, kv_heads=2, head_dim=18, intermediate_size=200)
    check(ExportRecipe(decoder_weights=DecoderWeights(block_size=256)), replace(BLUELM, decoder=decoder))
