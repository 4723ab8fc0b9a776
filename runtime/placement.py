"""Which variant runs which stages: one for all, or one for the vision stages and another for the language model."""

from __future__ import annotations

from dataclasses import replace

from pocketvlm.errors import BundleError, UsageError
from pocketvlm.runtime import decoder_contract, vision_contract
from pocketvlm.runtime.engines.qnn_provider import emulated
from pocketvlm.runtime.manifest import NPU_ENGINE, StageSpec, VariantSpec


def check_stages(variant: VariantSpec) -> None:
    """Refuse a variant that lacks a stage, or that has one which this runtime does not know.

    Raises:
        BundleError: naming the stage.
    """
    for stage in (*vision_contract.STAGES, *decoder_contract.STAGES):
        if not variant.chain(stage):
            raise BundleError(f"manifest.json: variant {variant.name!r} has no stage {stage!r}", "export the checkpoint again")
    known = {*vision_contract.stage_names(variant), *decoder_contract.stage_names(variant)}
    unknown = variant.stages.keys() - known
    if unknown:
        raise BundleError(f"manifest.json: variant {variant.name!r} needs stages {sorted(unknown)}", "update PocketVLM")


def place(vision_variant: VariantSpec, decoder_variant: VariantSpec) -> VariantSpec:
    """The vision stages of one variant with the language model of another, both of which `check_stages` has seen.

    Raises:
        UsageError: they do not speak of the same embeddings.
    """
    if vision_variant is decoder_variant:
        return vision_variant
    tokens = vision_variant.stages[vision_variant.chain("connector")[-1]].outputs[0].shape[-1]
    embeddings = decoder_variant.stages["embed_tokens"].outputs[0].shape[-1]
    if tokens != embeddings:
        raise UsageError(f"variants {vision_variant.name!r} and {decoder_variant.name!r} do not fit: {tokens} and {embeddings}")
    stages = {name: _explicit(vision_variant, name) for name in vision_contract.stage_names(vision_variant)} | {
        name: _explicit(decoder_variant, name) for name in decoder_contract.stage_names(decoder_variant)
    }
    return replace(
        decoder_variant,
        name=f"{vision_variant.name}+{decoder_variant.name}",
        target=f"{vision_variant.target}+{decoder_variant.target}",
        vision_batch=vision_variant.vision_batch,
        stages=stages,
        device=decoder_variant.device or vision_variant.device,
    )


def _explicit(variant: VariantSpec, stage: str) -> StageSpec:
    engine, options = variant.engine_of(stage)
    return replace(variant.stages[stage], engine=engine, engine_options=options)


def stage_engines(variant: VariantSpec) -> dict[str, str]:
    """The engine of each graph, and whether its device is emulated: "onnxruntime-qnn, emulated"."""
    return {stage: _engine_name(variant, stage) for stage in variant.stages}


def is_emulated(variant: VariantSpec) -> bool:
    """Whether a graph runs on an emulation of its device here, which is for checks, not for speed."""
    return emulated() and any(variant.engine_of(stage)[0] == NPU_ENGINE for stage in variant.stages)


def backend_name(variant: VariantSpec) -> str:
    """What runs where, for metrics: "qnn:SM8750 (onnxruntime-qnn)", or both halves where they differ."""
    halves = {"vision": variant.chain("vision_encoder")[0], "decoder": variant.chain("decode")[0]}
    told = {half: _engine_name(variant, stage) for half, stage in halves.items()}
    if told["vision"] == told["decoder"]:
        return f"{variant.target} ({told['vision']})"
    return f"{variant.target} (" + ", ".join(f"{half}: {name}" for half, name in told.items()) + ")"


def _engine_name(variant: VariantSpec, stage: str) -> str:
    engine, _ = variant.engine_of(stage)
    return f"{engine}, emulated" if engine == NPU_ENGINE and emulated() else engine
