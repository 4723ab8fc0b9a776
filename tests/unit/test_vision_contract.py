"""What the vision stages must take and give, in one piece or in parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.errors import BundleError
from pocketvlm.runtime.bundle import Bundle
from pocketvlm.runtime.manifest import Manifest, StageSpec, VariantSpec
from pocketvlm.runtime.vision import VisionEncoder
from pocketvlm.runtime.vision_contract import check_contract, check_sizes, stage_names


@pytest.fixture
def manifest(bundle_at: Callable[..., Path]) -> Manifest:
    return Bundle.open(bundle_at()).manifest


@pytest.fixture
def variant(contract: Any) -> VariantSpec:
    """Every stage in two parts, the second of which also takes what the first was given."""
    stages = {}
    for name, stage in contract.vision_stages(2).items():
        between = contract.tensor(f"{name}.between", "float32", 2, 7)
        stages[f"{name}.0"] = StageSpec(f"v/{name}.0", stage.inputs, (between,))
        stages[f"{name}.1"] = StageSpec(f"v/{name}.1", (between, *stage.inputs), stage.outputs)
    found: VariantSpec = contract.vision_variant(stages)
    return found


def changed(variant: VariantSpec, name: str, **fields: Any) -> VariantSpec:
    return replace(variant, stages={**variant.stages, name: replace(variant.stages[name], **fields)})


def test_parts_run_in_their_order(variant: VariantSpec, manifest: Manifest) -> None:
    assert stage_names(variant) == (
        "patch_embed.0", "patch_embed.1", "vision_encoder.0", "vision_encoder.1", "connector.0", "connector.1",
    )  # fmt: skip
    check_contract(variant)
    check_sizes(manifest, variant)


@pytest.mark.parametrize("shape", [(2, 8), (3, 7), ("B", 7), (2, 7, 1)])
@pytest.mark.parametrize("name", ["patch_embed", "vision_encoder", "connector"])
def test_parts_that_do_not_fit_each_other(variant: VariantSpec, name: str, shape: tuple[int | str, ...]) -> None:
    (between,) = variant.stages[f"{name}.0"].outputs
    broken = changed(variant, f"{name}.0", outputs=(replace(between, shape=shape),))
    with pytest.raises(
        BundleError, match=rf"stage {name} \(v/{name}\.1\) takes {name}\.between as float32 \[2, 7\], an earlier"
    ):
        VisionEncoder(broken, lambda stage: pytest.fail("opened a graph"), batch=2)


def test_parts_that_have_an_input_in_different_forms(variant: VariantSpec) -> None:
    between, patches = variant.stages["vision_encoder.1"].inputs
    broken = changed(variant, "vision_encoder.1", inputs=(between, replace(patches, dtype="float16")))
    with pytest.raises(BundleError, match=r"takes patches as float16 .*an earlier part has it as float32"):
        check_contract(broken)


def test_what_no_later_part_takes(variant: VariantSpec) -> None:
    (between,) = variant.stages["connector.0"].outputs
    broken = changed(variant, "connector.0", outputs=(between, replace(between, name="surplus")))
    with pytest.raises(BundleError, match=r"stage connector \(v/connector\.1\) differs .* in surplus"):
        check_contract(broken)


def test_tiles_and_tokens_of_another_size_are_found_in_parts(variant: VariantSpec, manifest: Manifest) -> None:
    (pixels,) = variant.stages["patch_embed.0"].inputs
    with pytest.raises(BundleError, match=r"stage patch_embed\.0: pixels has the shape \[2, 3, 99, 99\]"):
        check_sizes(manifest, changed(variant, "patch_embed.0", inputs=(replace(pixels, shape=(2, 3, 99, 99)),)))
    (tokens,) = variant.stages["connector.1"].outputs
    with pytest.raises(BundleError, match=r"stage connector\.1: tokens has the shape \[2, 5, 4\]"):
        check_sizes(manifest, changed(variant, "connector.1", outputs=(replace(tokens, shape=(2, 5, 4)),)))
