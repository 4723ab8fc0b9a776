"""Reading the parts of config.json and of the image processor that several checkpoint families share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeGuard

from pocketvlm.errors import CheckpointError
from pocketvlm.runtime.manifest import ImageSpec, Resample
from pocketvlm.toolchain.checkpoint import Checkpoint
from pocketvlm.toolchain.decoders import DECODERS
from pocketvlm.toolchain.hf_config import read_section
from pocketvlm.toolchain.spec import DecoderSpec, VisionSpec

_VISION_KINDS = {"siglip_vision_model": "siglip", "clip_vision_model": "clip"}
_DAMAGED = "the checkpoint is damaged; download it again"
_TIED_TENSORS = ("embed_tokens.weight", "lm_head.weight")
_RESAMPLE: dict[int, Resample] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}


def section(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A required object of config.json.

    Raises:
        CheckpointError: it is missing or no object.
    """
    value = config.get(key)
    if not isinstance(value, dict):
        raise CheckpointError(f"config.json: {key!r} is missing or not an object", "this is not the config of a whole VLM")
    return value


def vision_spec(config: Mapping[str, Any]) -> VisionSpec:
    """VisionSpec of a CLIP or SigLIP `vision_config`; its only feature layer is the last one.

    Raises:
        CheckpointError: an unknown tower or a value of the wrong type.
    """
    model_type = str(config.get("model_type", ""))
    if model_type not in _VISION_KINDS:
        known = ", ".join(sorted(_VISION_KINDS))
        raise CheckpointError(f"config.json: vision tower {model_type!r} is not supported", f"supported: {known}")
    try:
        full = read_section(config)
        if int(full.patch_size) < 1 or int(full.num_channels) != 3:
            raise CheckpointError(
                f"config.json: vision_config has patches of {full.patch_size} pixels and {full.num_channels} colour channels",
                "supported: patches of 1 pixel or more, 3 channels",
            )
        return VisionSpec(
            kind=_VISION_KINDS[model_type],
            hidden_size=int(full.hidden_size),
            layers=int(full.num_hidden_layers),
            heads=int(full.num_attention_heads),
            intermediate_size=int(full.intermediate_size),
            image_size=int(full.image_size),
            patch_size=int(full.patch_size),
            activation=str(full.hidden_act),
            norm_eps=float(full.layer_norm_eps),
            feature_layers=(int(full.num_hidden_layers),),
            class_token=model_type == "clip_vision_model",
        )
    except CheckpointError:
        raise
    except Exception as error:  # transformers raises many kinds for a bad config
        raise CheckpointError(f"config.json: vision_config cannot be read: {error}", "the config is damaged") from error


def decoder_spec(config: Mapping[str, Any], checkpoint: Checkpoint) -> DecoderSpec:
    """DecoderSpec of `text_config`.

    As in transformers, embedding and output projection are tied when either config says so, unless the checkpoint stores
    an output projection with other values.

    Raises:
        CheckpointError: an unknown decoder or a bad value.
    """
    decoder: DecoderSpec = DECODERS.load(str(config.get("model_type", "")), CheckpointError).read(config)
    tied = decoder.tie_embeddings or bool(checkpoint.config.get("tie_word_embeddings", False))
    return replace(decoder, tie_embeddings=tied and not _stores_another_head(checkpoint))


def _stores_another_head(checkpoint: Checkpoint) -> bool:
    found = {end: next((name for name in checkpoint.tensors if name.endswith(end)), None) for end in _TIED_TENSORS}
    table, head = (found[end] for end in _TIED_TENSORS)
    return None not in (table, head) and not checkpoint.same_values(str(table), str(head))


def image_processor(checkpoint: Checkpoint) -> dict[str, Any]:
    """The image processor's settings, from processor_config.json or else preprocessor_config.json, as transformers 5 reads.

    Raises:
        CheckpointError: neither holds them.
    """
    nested = checkpoint.processor.get("image_processor")
    settings = nested if isinstance(nested, dict) and nested else checkpoint.preprocessor
    if not settings:
        raise CheckpointError(
            "the checkpoint has no image processor settings (preprocessor_config.json, processor_config.json)",
            "save the model's processor into the directory",
        )
    return settings


def image_spec(settings: Mapping[str, Any]) -> ImageSpec:
    """ImageSpec of an image processor's settings.

    Raises:
        CheckpointError: a step that the runtime does not do, or a malformed value.
    """
    if settings.get("do_rescale", True) is not True or settings.get("do_normalize", True) is not True:
        raise CheckpointError(
            "the image processor does not rescale or normalise", "supported: do_rescale and do_normalize true"
        )
    if settings.get("do_resize", True) is not True:
        raise CheckpointError("the image processor does not resize", "supported: do_resize true")
    resample = settings.get("resample", 3)
    if not isinstance(resample, int) or resample not in _RESAMPLE:
        raise CheckpointError(
            f"the image processor resamples with filter {resample!r}", "supported: 1 Lanczos, 2 bilinear, 3 bicubic"
        )
    mean, deviation, rescale = settings.get("image_mean"), settings.get("image_std"), settings.get("rescale_factor", 1 / 255)
    if not _numbers(mean, 3) or not _numbers(deviation, 3) or not _numbers([rescale], 1):
        raise CheckpointError(
            "the image processor's image_mean and image_std must be three numbers each, its rescale_factor one", _DAMAGED
        )
    if min(rescale, *deviation) <= 0:
        raise CheckpointError("the image processor's image_std and rescale_factor must be positive", _DAMAGED)
    return ImageSpec(
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        std=(float(deviation[0]), float(deviation[1]), float(deviation[2])),
        rescale=float(rescale),
        resample=_RESAMPLE[resample],
    )


def _numbers(value: Any, count: int) -> TypeGuard[list[float]]:
    """Whether `value` is a list of `count` numbers that are finite in float32."""
    if not isinstance(value, list) or len(value) != count:
        return False
    return all(type(item) in (int, float) and abs(item) < 1e38 for item in value)


def stop_tokens(checkpoint: Checkpoint, text_config: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end an answer: generation_config.json's, else the text config's.

    Raises:
        CheckpointError: there is none, or what stands there is no id.
    """
    for source in (checkpoint.generation, checkpoint.config, text_config):
        value = source.get("eos_token_id")
        ids = value if isinstance(value, list) else [value]
        if value is None or not ids:
            continue
        if not all(type(item) is int for item in ids):
            raise CheckpointError(f"eos_token_id {value!r} is neither a token id nor a list of them", _DAMAGED)
        return tuple(ids)
    raise CheckpointError("no eos_token_id in generation_config.json or config.json", "add one: without it no answer ends")


def image_token_id(config: Mapping[str, Any]) -> int:
    """The id that marks images in a tokenised prompt (`image_token_id`, or the older `image_token_index`).

    Raises:
        CheckpointError: there is none.
    """
    for key in ("image_token_id", "image_token_index"):
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    raise CheckpointError("config.json has no image_token_id (or image_token_index)", "a VLM's config names its image token")
