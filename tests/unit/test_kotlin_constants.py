"""What the Kotlin runtime has to say in its own words and cannot read from a shared file: it says the same as Python's."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pocketvlm
from pocketvlm.runtime import manifest
from pocketvlm.runtime.engines import int8_products, onnxruntime_engine, qnn_engine

RUNTIME = Path(__file__).parents[2] / "runtime/kotlin/core/src/main/kotlin/dev/pocketvlm/runtime"


def source(name: str) -> str:
    return (RUNTIME / name).read_text(encoding="utf-8")


def strings_of(text: str, name: str) -> set[str]:
    """The texts in `val NAME = setOf(...)` or `mapOf(...)`."""
    found = re.search(rf"val {name} = (?:setOf|mapOf)\((.*?)\)\n", text, re.DOTALL)
    assert found is not None, name
    return set(re.findall(r'"([^"]*)"', found[1]))


def constant(text: str, name: str) -> str:
    found = re.search(rf"const val {name}(?:: \w+)? = (.*)", text)
    assert found is not None, name
    return found[1]


def test_engine_options_that_a_bundle_may_set() -> None:
    text = source("engine/OrtEngine.kt")
    kotlin = strings_of(text, "CONFIG_ENTRIES") | {constant(text, "NO_KLEIDIAI").strip('"')}
    assert kotlin == onnxruntime_engine._CONFIG_ENTRIES
    assert strings_of(text, "OPTIMIZATION_LEVELS") == set(onnxruntime_engine._OPTIMIZATION_LEVELS)
    arm = onnxruntime_engine._ARM_KERNELS
    assert strings_of(text, "ARM_KERNELS") == {*arm, *arm.values()}
    assert strings_of(source("engine/QnnEngine.kt"), "PROVIDER_OPTIONS") == qnn_engine._PROVIDER_OPTIONS


def test_the_contracts_constants() -> None:
    text = source("Manifest.kt")
    assert constant(text, "SCHEMA_MAJOR") == str(manifest.SCHEMA_MAJOR)
    assert constant(text, "SCHEMA_MINOR") == str(manifest.SCHEMA_MINOR)
    assert constant(text, "NAME") == f'"{manifest.MANIFEST_NAME}"'
    assert constant(text, "HASH_NAME") == f'"{manifest.MANIFEST_HASH_NAME}"'
    assert float(constant(text, "LEAST_TEMPERATURE")) == manifest.LEAST_TEMPERATURE
    rules = source("ManifestRules.kt")
    for name in ("MAX_TILE_SIZE", "MAX_GRIDS", "MAX_GRID_SIDE"):
        assert int(constant(rules, name)) == getattr(manifest, name), name


def test_the_version_and_the_probe_of_the_processor() -> None:
    assert constant(source("PocketVlm.kt"), "POCKETVLM_VERSION") == f'"{pocketvlm.__version__}"'
    probe = re.search(r'PROBE = ("[^"]*") \+\s+("[^"]*")', source("engine/Int8Products.kt"))
    assert probe is not None
    assert base64.b64decode("".join(part.strip('"') for part in probe.groups())) == int8_products.PROBE
