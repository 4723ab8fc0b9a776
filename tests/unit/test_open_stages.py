"""Which stages are one engine session, when a bundle is verified and when it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pocketvlm.runtime import VlmSession, session
from pocketvlm.runtime.bundle import Bundle
from pocketvlm.runtime.engines.fake import FakeEngine, FakeSession
from pocketvlm.runtime.manifest import VariantSpec
from pocketvlm.toolchain import stages
from pocketvlm.toolchain.stages import open_stages

Opened = list[tuple[str, str, dict[str, str], int | None]]


class Spy:
    """An engine that notes what it opens."""

    def __init__(self, name: str, opened: Opened) -> None:
        self._name, self._opened = name, opened

    def open(self, path: Path, options: Mapping[str, str], threads: int | None) -> FakeSession:
        self._opened.append((path.name, self._name, dict(options), threads))
        return FakeEngine().open(path, options, threads)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    found: Opened = []
    for module in (stages, session):
        monkeypatch.setattr(module, "load_engine", lambda name: Spy(name, found))
    return found


@pytest.fixture
def bundle(bundle_at: Callable[..., Path]) -> Bundle:
    return Bundle.open(bundle_at())


DECODERS = {
    "equal": ("", {}, 1),
    "equal, but said by the stage": ("fake", {}, 1),
    "other options": ("fake", {"graph_optimization": "disabled"}, 2),
    "other engine": ("another", {}, 2),
}


def differing(bundle: Bundle, case: str) -> VariantSpec:
    """prefill and decode name one file; decode's engine and options are its own."""
    (variant,) = bundle.manifest.variants
    assert variant.stages["prefill"].file == variant.stages["decode"].file
    engine, options, _ = DECODERS[case]
    decode = replace(variant.stages["decode"], engine=engine, engine_options=options)
    return replace(variant, stages={**variant.stages, "decode": decode})


@pytest.mark.parametrize("case", DECODERS)
def test_verification_opens_a_file_once_for_each_engine_and_its_options(bundle: Bundle, opened: Opened, case: str) -> None:
    variant = differing(bundle, case)
    with open_stages(variant, bundle.directory):
        pass
    found = [(engine, options) for file, engine, options, _ in opened if file == "decoder.onnx"]
    engine, options, count = DECODERS[case]
    assert found == [("fake", {}), (engine, options)][:count]


@pytest.mark.parametrize("case", DECODERS)
def test_a_session_opens_a_file_once_for_each_engine_and_its_options(bundle: Bundle, opened: Opened, case: str) -> None:
    VlmSession(bundle, differing(bundle, case)).close()
    found = [(engine, options) for file, engine, options, _ in opened if file == "decoder.onnx"]
    engine, options, count = DECODERS[case]
    assert found == [("fake", {}), (engine, options)][:count]


@pytest.mark.parametrize("name", ["patch_embed", "patch_embed.0"])
def test_patch_embedding_beside_the_encoder_leaves_it_the_threads(bundle: Bundle, opened: Opened, name: str) -> None:
    (variant,) = bundle.manifest.variants
    stages = {name if stage == "patch_embed" else stage: spec for stage, spec in variant.stages.items()}
    VlmSession(bundle, replace(variant, stages=stages), threads=2).close()
    threads = {file: count for file, _, _, count in opened}
    assert threads == {"patch.onnx": 1, "vision.onnx": 2, "connector.onnx": 2, "embed.onnx": 1, "decoder.onnx": 2}
