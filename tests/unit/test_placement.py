"""Which variant runs which stages, and on which device."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.errors import EnvironmentFault, UsageError
from pocketvlm.runtime import devices
from pocketvlm.runtime.devices import check_device, soc_name
from pocketvlm.runtime.manifest import DeviceSpec, VariantSpec
from pocketvlm.runtime.placement import backend_name, place

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
        check_device(npu)
        return
    with pytest.raises(EnvironmentFault, match=rf"compiled by QAIRT 2\.50\.40; the runtime here is QAIRT {here}"):
        check_device(npu)


def test_weights_that_prefill_and_decode_share_are_not_emulated(npu: VariantSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "qairt_version", lambda: "2.50.40")
    shared = replace(npu, engine_options={"shared_weights": "1"})
    monkeypatch.setattr(devices, "emulated", lambda: True)
    with pytest.raises(EnvironmentFault, match="share weights"):
        check_device(shared)
    monkeypatch.setattr(devices, "emulated", lambda: False)
    monkeypatch.setattr(devices, "soc_name", lambda: "SM8750")
    check_device(shared)


def test_a_variant_without_device_runs_anywhere(cpu: VariantSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "qairt_version", lambda: pytest.fail("asked for the NPU's package"))
    check_device(cpu)


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
