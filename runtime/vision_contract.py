"""What the vision stages take and give, and in which order their graphs run."""

from __future__ import annotations

from pocketvlm.errors import BundleError
from pocketvlm.runtime.manifest import Manifest, VariantSpec
from pocketvlm.runtime.stage_chain import check_chain

STAGES = ("patch_embed", "vision_encoder", "connector")
_TENSORS = {
    "patch_embed": ("pixels", "patches"),
    "vision_encoder": ("patches", "features"),
    "connector": ("features", "tokens"),
}


def stage_names(variant: VariantSpec) -> tuple[str, ...]:
    """All graphs of the vision stages."""
    return tuple(part for name in STAGES for part in variant.chain(name))


def check_contract(variant: VariantSpec) -> None:
    """Refuse stages that do not lead from their input to their output, one tensor each, through their parts.

    Raises:
        BundleError: naming stage and tensor.
    """
    for name, (source, target) in _TENSORS.items():
        check_chain(name, [variant.stages[part] for part in variant.chain(name)], {source}, {target})


def check_sizes(manifest: Manifest, variant: VariantSpec) -> None:
    """Refuse a variant whose vision stages do not take the tiles, or do not give the tokens, that the manifest speaks of.

    Raises:
        BundleError: naming stage and tensor.
    """
    side, tokens = manifest.tiling.tile_size, manifest.image_tokens.rows * manifest.image_tokens.cols
    ends = []
    if chain := variant.chain("patch_embed"):
        pixels = variant.stages[chain[0]].inputs[0]
        ends.append((chain[0], pixels, pixels.shape[2:] == (side, side)))
    if chain := variant.chain("connector"):
        visual = variant.stages[chain[-1]].outputs[0]
        ends.append((chain[-1], visual, visual.shape[1:2] == (tokens,)))
    for name, tensor, fits in ends:
        if not fits:
            raise BundleError(
                f"manifest.json: variant {variant.name!r}, stage {name}: {tensor.name} has the shape {list(tensor.shape)}, "
                f"but tiles have {side} pixels a side and give {tokens} tokens",
                "export the checkpoint again",
            )
