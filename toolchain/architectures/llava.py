"""LLaVA-1.5 as transformers saves LlavaForConditionalGeneration (arXiv 2310.03744): CLIP or SigLIP, MLP, Llama."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pocketvlm.errors import CheckpointError
from pocketvlm.runtime.manifest import Fit, ImageTokensSpec
from pocketvlm.toolchain.architectures import configs, names
from pocketvlm.toolchain.checkpoint import Checkpoint
from pocketvlm.toolchain.spec import ConnectorSpec, ModelSpec, VisionSpec
from pocketvlm.toolchain.tiling import single


def describe(checkpoint: Checkpoint) -> ModelSpec:
    """ModelSpec of a checkpoint of this family.

    Raises:
        CheckpointError: a section is missing, mistyped, inconsistent or of an unsupported kind.
    """
    config = checkpoint.config
    text = configs.section(config, "text_config")
    vision = _choose_features(configs.vision_spec(configs.section(config, "vision_config")), config)
    decoder = configs.decoder_spec(text, checkpoint)
    settings = configs.image_processor(checkpoint)
    connector = ConnectorSpec(
        kind="mlp",
        input_size=vision.feature_size,
        hidden_size=decoder.hidden_size,
        output_size=decoder.hidden_size,
        activation=str(config.get("projector_hidden_act", "gelu")),
        bias=bool(config.get("multimodal_projector_bias", True)),
        side=vision.patches_per_side,
    )
    side = vision.patches_per_side
    square = vision.feature_count == side * side
    tokens = ImageTokensSpec(
        rows=side if square else 1, cols=side if square else vision.feature_count, arrangement="tile_by_tile"
    )
    return ModelSpec(
        architecture="llava",
        vision=vision,
        connector=connector,
        decoder=decoder,
        tiling=single.tiling(vision.image_size, fit=_fit(settings, vision)),
        image=configs.image_spec(settings),
        image_tokens=tokens,
        image_token=checkpoint.token_text(configs.image_token_id(config)),
        stop_tokens=configs.stop_tokens(checkpoint, text),
    )


def _choose_features(vision: VisionSpec, config: Mapping[str, Any]) -> VisionSpec:
    layers = config.get("vision_feature_layer", -2)
    chosen = layers if isinstance(layers, list) else [layers]
    if not chosen or not all(isinstance(layer, int) and not isinstance(layer, bool) for layer in chosen):
        raise CheckpointError(f"config.json: vision_feature_layer {layers!r} is neither a number nor a list of numbers")
    count = vision.layers + 1
    if any(not -count <= layer < count for layer in chosen):
        raise CheckpointError(f"config.json: vision_feature_layer {layers!r} is outside a tower of {vision.layers} layers")
    strategy = config.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise CheckpointError(f"config.json: vision_feature_select_strategy {strategy!r}", "known: default, full")
    return replace(vision, feature_layers=tuple(layer % count for layer in chosen), drop_first=strategy == "default")


def _fit(settings: Mapping[str, Any], vision: VisionSpec) -> Fit:
    """How the processor brings an image to the tower's size: shortest edge and crop, or stretched."""
    size = settings.get("size", {})
    crop = settings.get("crop_size", {})
    if settings.get("do_pad"):
        raise CheckpointError("the image processor pads images (do_pad), which is not supported", "set do_pad to false")
    edge = size.get("shortest_edge") if isinstance(size, dict) else size
    wanted = vision.image_size
    if edge is not None and settings.get("do_center_crop"):
        edges = [edge, crop.get("height"), crop.get("width")] if isinstance(crop, dict) else [edge, crop]
        if any(value != wanted for value in edges):
            raise CheckpointError(f"the image processor crops to {edges}, the tower expects {wanted} pixels")
        return "crop"
    if isinstance(size, dict) and size.get("height") == size.get("width") == wanted and not settings.get("do_center_crop"):
        return "stretch"
    raise CheckpointError(
        f"the image processor's size {size!r} does not give square images of {wanted} pixels",
        "supported: shortest_edge with a centre crop of the same size, or height and width",
    )


def rename(name: str) -> str | None:
    """Checkpoint tensor name -> canonical name; transformers 4 and 5 nest the parts differently."""
    if name in ("lm_head.weight", "language_model.lm_head.weight"):
        return "decoder.lm_head.weight"
    prefix, _, rest = name.removeprefix("model.").partition(".")
    if prefix == "vision_tower":
        return names.vision_tower(rest)
    if prefix == "language_model":
        return names.llama(rest)
    if prefix == "multi_modal_projector":
        return f"connector.{rest}"
    return name
