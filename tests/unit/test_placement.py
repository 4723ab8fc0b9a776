"""Which variant runs which stages, and on which device."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.errors import BundleError, EnvironmentFault, UsageError
from pocketvlm.runtime import decoder_contract, devices, vision_contract
from pocketvlm.runtime.bundle import Bundle
from pocketvlm.runtime.devices import check_device, soc_name
from pocketvlm.runtime.manifest import DeviceSpec, VariantSpec
from pocketvlm.runtime.placement import backend_name, check_stages, place

DEVICE = DeviceSpec("SM8750", 69, 79, "2.50.40")


@pytest.fixture
def cpu(contract: Any) -> VariantSpec:
    cache = contract.kv_spec()
    stages = {**contract.vision_stages(), **contract.decoder_stages(cache)}
    return VariantSpec("cpu", "ort-cpu", "paper", "onnxruntime", {"int8_products": "exact"}, 4, stages, cache, {})


@pytest.fixture
def npu(cpu: VariantSpec) -> VariantSpec:
    options = {"soc_model": "69"}
    return replace(
        cpu, name="npu", target="qnn:SM8750", engine="onnxruntime-qnn", engine_options=options, vision_batch=1, device=DEVICE
    )


def test_stages_keep_their_engine_and_its_options(cpu: VariantSpec, npu: VariantSpec) -> None:
    mixed = place(npu, cpu)
    assert mixed.target == "qnn:SM8750+ort-cpu"
    assert mixed.vision_batch == 1
    assert mixed.engine_of("vision_encoder") == ("onnxruntime-qnn", {"soc_model": "69"})
    assert mixed.engine_of("decode") == ("onnxruntime", {"int8_products": "exact"})
    assert mixed.kv_cache == cpu.kv_cache
    assert place(cpu, cpu) is cpu


def test_the_metrics_say_what_ran_where(cpu: VariantSpec, npu: VariantSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketvlm.runtime.placement.emulated", lambda: False)
    assert backend_name(npu) == "qnn:SM8750 (onnxruntime-qnn)"
    assert backend_name(place(cpu, npu)) == "ort-cpu+qnn:SM8750 (vision: onnxruntime, decoder: onnxruntime-qnn)"
    monkeypatch.setattr("pocketvlm.runtime.placement.emulated", lambda: True)
    assert backend_name(npu) == "qnn:SM8750 (onnxruntime-qnn, emulated)"


def test_variants_of_different_sizes_do_not_mix(cpu: VariantSpec, npu: VariantSpec) -> None:
    embed = npu.stages["embed_tokens"]
    wider = replace(embed, outputs=(replace(embed.outputs[0], shape=(1, "L", 99)),))
    with pytest.raises(UsageError, match="do not fit: 4 and 99"):
        place(cpu, replace(npu, stages={**npu.stages, "embed_tokens": wider}))


@pytest.mark.parametrize(
    ("here", "good"),
    [("2.50.40", True), ("2.50.1", True), ("2.51.0", True), ("3.0", True), ("2.49.99", False), ("1.99", False)],
)
def test_the_runtime_must_not_be_older_than_the_compiler(
    npu: VariantSpec, here: str, good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "qairt_version", lambda: here)
    monkeypatch.setattr(devices, "emulated", lambda: True)
    if good:
        check_device(npu, npu.stages)
        return
    with pytest.raises(EnvironmentFault, match=rf"compiled by QAIRT 2\.50\.40; the runtime here is QAIRT {here}"):
        check_device(npu, npu.stages)


def sharing(variant: VariantSpec) -> VariantSpec:
    """With prefill and decode in one binary, as an export for a phone has them."""
    options = {**variant.engine_options, "shared_weights": "1"}
    together = {
        name: replace(variant.stages[name], engine=variant.engine, engine_options=options) for name in ("prefill", "decode")
    }
    return replace(variant, stages={**variant.stages, **together})


def test_weights_that_prefill_and_decode_share_are_not_emulated(npu: VariantSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "qairt_version", lambda: "2.50.40")
    shared = sharing(npu)
    monkeypatch.setattr(devices, "emulated", lambda: True)
    with pytest.raises(EnvironmentFault, match="share weights"):
        check_device(shared, decoder_contract.stage_names(shared))
    check_device(shared, vision_contract.stage_names(shared))
    monkeypatch.setattr(devices, "emulated", lambda: False)
    monkeypatch.setattr(devices, "soc_name", lambda: "SM8750")
    check_device(shared, shared.stages)


def test_only_the_stages_in_use_must_run_here(
    npu: VariantSpec, cpu: VariantSpec, bundle_at: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "qairt_version", lambda: "2.50.40")
    monkeypatch.setattr(devices, "emulated", lambda: True)
    opened = Bundle.open(bundle_at())
    variants = (sharing(npu), cpu)
    bundle = Bundle(opened.directory, replace(opened.manifest, variants=variants))
    mixed = bundle.variant("qnn:SM8750+ort-cpu")
    assert mixed.engine_of("vision_encoder") == ("onnxruntime-qnn", {"soc_model": "69"})
    assert mixed.device == DEVICE
    for target, instead in (("qnn:SM8750", r"qnn:SM8750\+ort-cpu"), ("ort-cpu+qnn:SM8750", "ort-cpu")):
        with pytest.raises(EnvironmentFault, match=rf"share weights.*\(target {instead} runs here, .*; or run it on a SM8750"):
            bundle.variant(target)
    with pytest.raises(EnvironmentFault, match=r"share weights.*\(run it on a SM8750, or"):
        Bundle(opened.directory, replace(opened.manifest, variants=variants[:1])).variant("qnn:SM8750")
    monkeypatch.setattr(devices, "qairt_version", lambda: "2.49.0")
    with pytest.raises(EnvironmentFault, match="which is older"):
        bundle.variant("qnn:SM8750+ort-cpu")


def test_what_the_cpu_runs_of_a_variant_needs_no_device(npu: VariantSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "qairt_version", lambda: pytest.fail("asked for the NPU's package"))
    on_cpu = {name: replace(npu.stages[name], engine="onnxruntime") for name in decoder_contract.stage_names(npu)}
    check_device(replace(npu, stages={**npu.stages, **on_cpu}), on_cpu)


def in_parts(variant: VariantSpec, name: str) -> VariantSpec:
    """With a stage cut in two, between which goes what goes into it."""
    stages = dict(variant.stages)
    whole = stages.pop(name)
    between = replace(whole.inputs[0], name=f"{name}.between")
    stages[f"{name}.0"] = replace(whole, outputs=(between,))
    stages[f"{name}.1"] = replace(whole, inputs=(between,))
    return replace(variant, stages=stages)


@pytest.mark.parametrize("name", ["patch_embed", "vision_encoder", "connector"])
def test_vision_stages_in_parts_are_placed(name: str, cpu: VariantSpec, npu: VariantSpec) -> None:
    mixed = place(in_parts(npu, name), cpu)
    assert mixed.chain(name) == (f"{name}.0", f"{name}.1")
    assert {mixed.engine_of(part)[0] for part in mixed.chain(name)} == {"onnxruntime-qnn"}
    check_stages(mixed)
    vision_contract.check_contract(mixed)


def test_missing_and_unknown_stages_are_named(cpu: VariantSpec, npu: VariantSpec, bundle_at: Callable[..., Path]) -> None:
    check_stages(in_parts(cpu, "connector"))
    opened = Bundle.open(bundle_at())
    for change, message in (
        ({"connector": None}, "'cpu' has no stage 'connector'"),
        ({"embed_tokens": None}, "'cpu' has no stage 'embed_tokens'"),
        ({"fusion": cpu.stages["connector"]}, r"'cpu' needs stages \['fusion'\]"),
        ({"lm_head.0": cpu.stages["connector"]}, r"needs stages \['lm_head\.0'\]"),
    ):
        stages = {name: stage for name, stage in {**cpu.stages, **change}.items() if stage is not None}
        variants = (replace(cpu, stages=stages), npu)
        bundle = Bundle(opened.directory, replace(opened.manifest, variants=variants))
        for target in (None, "ort-cpu", "ort-cpu+qnn:SM8750", "qnn:SM8750+ort-cpu"):
            with pytest.raises(BundleError, match=message):
                bundle.variant(target)


def test_a_variant_without_device_runs_anywhere(cpu: VariantSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "qairt_version", lambda: pytest.fail("asked for the NPU's package"))
    check_device(cpu, cpu.stages)


def test_the_soc_is_what_the_system_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(devices, "_SOC_NAME", tmp_path / "machine")
    assert soc_name() is None
    (tmp_path / "machine").write_text("SM8550\n")
    assert soc_name() == "SM8550"
    getprop = tmp_path / "getprop"
    getprop.write_text('#!/bin/sh\n[ "$1" = ro.soc.model ] && echo SM8750\n')
    getprop.chmod(getprop.stat().st_mode | stat.S_IXUSR)
    assert soc_name() == "SM8750"
