"""What the graphs of a decoder must take and give, in one piece or in parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pocketvlm.errors import BundleError
from pocketvlm.runtime.decoder_contract import check_contract, decoder_chain, stage_names
from pocketvlm.runtime.manifest import StageSpec, TensorSpec, VariantSpec

Stages = dict[str, StageSpec]


def tensor(name: str, *shape: int, dtype: Any = "float32") -> TensorSpec:
    return TensorSpec(name, dtype, shape)


def part(length: int, layer: int, source: str, target: str) -> StageSpec:
    past = (tensor(f"past_key.{layer}", 1, 2, 2, 64, dtype="int8"), tensor(f"past_value.{layer}", 1, 2, 64, 2, dtype="int8"))
    new = (
        tensor(f"new_key.{layer}", 1, 2, 2, length, dtype="int8"),
        tensor(f"new_value.{layer}", 1, 2, length, 2, dtype="int8"),
    )
    inputs = (tensor(source, 1, length, 4), tensor("mask", 1, 1, 1, 64 + length), *past)
    return StageSpec(f"v/{layer}", inputs, (tensor(target, 1, length, 4), *new))


def positions(length: int) -> StageSpec:
    return StageSpec("v/positions", (tensor("past_length", 1, dtype="int64"),), (tensor("mask", 1, 1, 1, 64 + length),))


@pytest.fixture
def variant(contract: Any) -> VariantSpec:
    """Two layers in two parts, positions on their own, and a head."""
    stages: Stages = {
        "embed_tokens": contract.decoder_stages(contract.kv_spec())["embed_tokens"],
        "lm_head": StageSpec("v/head", (tensor("hidden", 1, 1, 4),), (tensor("logits", 1, 96),)),
    }
    for name, length in (("prefill", 8), ("decode", 1)):
        stages[f"{name}_positions"] = positions(length)
        stages[f"{name}.0"] = part(length, 0, "embeddings", "hidden.1")
        stages[f"{name}.1"] = part(length, 1, "hidden.1", "hidden")
    cache = contract.kv_spec(protocol="columns", keys_transposed=True)
    return VariantSpec("v", "t", "paper", "fake", {}, 4, stages, cache, {})


def check(variant: VariantSpec) -> None:
    check_contract(variant, {name: decoder_chain(variant, name) for name in ("prefill", "decode")})


def changed(variant: VariantSpec, **stages: StageSpec | None) -> VariantSpec:
    found = {name.replace("__", "."): stage for name, stage in stages.items()}
    return replace(variant, stages={name: stage for name, stage in {**variant.stages, **found}.items() if stage is not None})


def test_graphs_run_in_their_order(variant: VariantSpec) -> None:
    check(variant)
    assert decoder_chain(variant, "prefill") == ("prefill_positions", "prefill.0", "prefill.1")
    assert stage_names(variant) == (
        "embed_tokens", "prefill_positions", "prefill.0", "prefill.1", "decode_positions", "decode.0", "decode.1", "lm_head",
    )  # fmt: skip


def test_an_input_that_nothing_makes(variant: VariantSpec) -> None:
    with pytest.raises(BundleError, match=r"stage prefill \(v/1\) differs .* in hidden\.7"):
        check(changed(variant, prefill__1=part(8, 1, "hidden.7", "hidden")))


def test_an_output_that_nothing_takes(variant: VariantSpec) -> None:
    with pytest.raises(BundleError, match=r"stage decode .* differs .* hidden, hidden\.9"):
        check(changed(variant, decode__1=part(1, 1, "hidden.1", "hidden.9")))


def test_a_layer_that_is_left_out(variant: VariantSpec) -> None:
    with pytest.raises(BundleError, match="stage prefill"):
        check(changed(variant, prefill__1=None))


def test_parts_that_do_not_fit_each_other(variant: VariantSpec) -> None:
    first = variant.stages["prefill.0"]
    outputs = (replace(first.outputs[0], shape=(1, 8, 5)), *first.outputs[1:])
    with pytest.raises(BundleError, match=r"takes hidden\.1 as float32 \[1, 8, 4\], an earlier part has it as .*\[1, 8, 5\]"):
        check(changed(variant, prefill__0=replace(first, outputs=outputs)))


def test_parts_that_are_given_the_same_tensor_in_different_forms(variant: VariantSpec) -> None:
    first = variant.stages["prefill.0"]
    second = replace(variant.stages["prefill.1"], inputs=(*variant.stages["prefill.1"].inputs, tensor("embeddings", 1, 8, 9)))
    assert first.inputs[0].name == "embeddings"
    with pytest.raises(BundleError, match=r"takes embeddings as float32 \[1, 8, 9\], an earlier part has it as .*\[1, 8, 4\]"):
        check(changed(variant, prefill__1=second))


@pytest.mark.parametrize("name", ["embeddings", "hidden.1"])
def test_a_tensor_that_is_made_again(variant: VariantSpec, name: str) -> None:
    second = variant.stages["prefill.1"]
    with pytest.raises(BundleError, match=rf"stage prefill \(v/1\) makes {name} again"):
        check(changed(variant, prefill__1=replace(second, outputs=(*second.outputs, tensor(name, 1, 8, 4)))))


def test_a_head_without_logits(variant: VariantSpec) -> None:
    head = replace(variant.stages["lm_head"], outputs=(tensor("scores", 1, 96),))
    with pytest.raises(BundleError, match=r"stage lm_head .* logits, scores"):
        check(changed(variant, lm_head=head))


def test_transposed_keys_cannot_be_written_in_place(contract: Any) -> None:
    cache = contract.kv_spec(keys_transposed=True)
    variant = VariantSpec("v", "t", "paper", "fake", {}, 4, contract.decoder_stages(cache), cache, {})
    with pytest.raises(BundleError, match="transposed keys"):
        check(variant)
