"""BlueLM-V-3B (arXiv 2411.10640): SigLIP tower, 2x2 concatenation, two-layer MLP, Llama-style decoder.

vivo has published no checkpoint, so the layout is ours: `vision_config` and `text_config` as transformers writes them,
and beside them

    "projector_config": {"hidden_size": 384, "hidden_act": "gelu", "downsample": 2, "bias": true}
    "tiling_config": {"policy": "relaxed_aspect", "grids": [[1, 1], [1, 2], ...], "thumbnail": "several_tiles", "alpha": 0.1}
    "image_tokens_config": {"arrangement": "picture_rows", "thumbnail_first": true, "newline": true}

Tensors: vision_tower.*, multi_modal_projector.linear_{1,2}.*, language_model.*, image_newline (optional).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pocketvlm.errors import CheckpointError
from pocketvlm.runtime.manifest import Arrangement, ImageTokensSpec, Thumbnail, TilingSpec
from pocketvlm.runtime.strict_json import decode
from pocketvlm.toolchain.architectures import configs, names
from pocketvlm.toolchain.checkpoint import Checkpoint
from pocketvlm.toolchain.spec import ConnectorSpec, ModelSpec
from pocketvlm.toolchain.tiling import grids

_NEWLINE = "newline.f32"


@dataclass(frozen=True, slots=True)
class _Projector:
    hidden_size: int
    hidden_act: str = "gelu"
    downsample: int = 2
    bias: bool = True


@dataclass(frozen=True, slots=True)
class _Tiling:
    grids: tuple[tuple[int, int], ...]
    policy: str = "relaxed_aspect"
    thumbnail: Thumbnail = "several_tiles"
    alpha: float = 0.1


@dataclass(frozen=True, slots=True)
class _ImageTokens:
    arrangement: Arrangement = "tile_by_tile"
    thumbnail_first: bool = True
    newline: bool = False


def describe(checkpoint: Checkpoint) -> ModelSpec:
    """ModelSpec of a checkpoint of this family.

    Raises:
        CheckpointError: a section is missing, mistyped or inconsistent.
    """
    config = checkpoint.config
    text = configs.section(config, "text_config")
    vision = replace(configs.vision_spec(configs.section(config, "vision_config")), final_norm=True)
    projector: _Projector = _read(_Projector, config, "projector_config")
    tiling: _Tiling = _read(_Tiling, config, "tiling_config")
    tokens: _ImageTokens = _read(_ImageTokens, config, "image_tokens_config")
    if not 1 <= projector.downsample <= vision.patches_per_side:
        raise CheckpointError(
            f"config.json: projector_config.downsample is {projector.downsample}",
            f"it must be between 1 and {vision.patches_per_side}, the patches on a side of a tile",
        )
    if tokens.newline and tokens.arrangement != "picture_rows":
        raise CheckpointError(
            f"config.json: image_tokens_config has a newline in the arrangement {tokens.arrangement!r}",
            "only the rows of picture_rows have one",
        )
    decoder = configs.decoder_spec(text, checkpoint)
    connector = ConnectorSpec(
        kind="concat2x2",
        input_size=vision.feature_size,
        hidden_size=projector.hidden_size,
        output_size=decoder.hidden_size,
        activation=projector.hidden_act,
        bias=projector.bias,
        side=vision.patches_per_side,
        merge=projector.downsample,
    )
    return ModelSpec(
        architecture="bluelm_v",
        vision=vision,
        connector=connector,
        decoder=decoder,
        tiling=grids.checked(
            TilingSpec(tiling.policy, vision.image_size, tiling.grids, tiling.thumbnail, tiling.alpha, fit="pad")
        ),
        image=configs.image_spec(configs.image_processor(checkpoint)),
        image_tokens=ImageTokensSpec(
            rows=connector.merged_side,
            cols=connector.merged_side,
            arrangement=tokens.arrangement,
            thumbnail_first=tokens.thumbnail_first,
            newline=_NEWLINE if tokens.newline else "",
        ),
        image_token=checkpoint.token_text(configs.image_token_id(config)),
        stop_tokens=configs.stop_tokens(checkpoint, text),
    )


def _read(kind: type, config: dict[str, Any], key: str) -> Any:
    return decode(kind, configs.section(config, key), f"config.json: {key}", CheckpointError)


def rename(name: str) -> str | None:
    """Checkpoint tensor name -> canonical name."""
    prefix, _, rest = name.partition(".")
    if prefix == "vision_tower":
        return names.vision_tower(rest)
    if prefix == "language_model":
        return names.llama(rest)
    if prefix == "multi_modal_projector":
        return f"connector.{rest}"
    return "newline" if name == "image_newline" else name
