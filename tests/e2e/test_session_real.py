"""Sessions on real graphs: whatever is reused, released, cancelled or run side by side, the tokens are the same."""

from __future__ import annotations

import gc
import re
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image

from pocketvlm.errors import BundleError, Cancelled, UsageError
from pocketvlm.runtime import VlmSession, encoding
from pocketvlm.runtime.decoder import Decoder
from pocketvlm.runtime.engines import int8_products
from pocketvlm.runtime.image import load_image, make_tiles
from pocketvlm.runtime.manifest_reader import parse_manifest
from pocketvlm.runtime.sampler import Sampler
from pocketvlm.runtime.tiling import arrange_tokens, plan_tiles
from pocketvlm.runtime.trace import Trace
from pocketvlm.runtime.vision import VisionEncoder
from pocketvlm.toolchain.stages import VISION_STAGES, open_stages

Exported = Callable[[str], Path]
Messages = list[dict[str, Any]]
# What the user says in three turns.
TURNS = ["What is in this picture?", "Describe the image, please.", "Numbers and words"]
# Logits differ by what a float32 sum in another order gives; in the paper bundle a key or value on the border between two
# codes of the INT8 cache may go the other way, too. Greedy tokens are compared where the best is ahead by more than that.
LEAD = {"fp32": 0.001, "paper": 0.05}


@pytest.fixture
def leads(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How far the chosen token was ahead of the next one, for every token of every answer."""
    found: list[float] = []
    sample = Sampler.sample

    def watched(self: Sampler, logits: NDArray[np.float32]) -> int:
        second, first = np.sort(logits)[-2:]
        found.append(float(first - second))
        return sample(self, logits)

    monkeypatch.setattr(Sampler, "sample", watched)
    return found


def question(text: str, *images: object) -> dict[str, Any]:
    shown = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*shown, {"type": "text", "text": text}]}


def answer(session: VlmSession, messages: Messages, count: int = 16) -> tuple[int, ...]:
    with session.chat(messages, max_new_tokens=count) as stream:
        for _ in stream:
            pass
        return stream.token_ids


def fresh(bundle: Path, messages: Messages, count: int = 16, **options: Any) -> tuple[int, ...]:
    with VlmSession.open(bundle, threads=1, **options) as session:
        return answer(session, messages, count)


@pytest.fixture
def ask(photograph: Path) -> Messages:
    return [question("What is in this picture?", photograph)]


@pytest.mark.parametrize("precision", ["fp32", "paper"])
def test_turns_reuse_the_cache_and_give_the_tokens_of_a_fresh_session(
    precision: str, exported: Exported, photograph: Path, leads: list[float]
) -> None:
    bundle = exported(precision)
    messages: Messages = []
    known = compared = 0
    with VlmSession.open(bundle, threads=1) as session:
        for number, turn in enumerate(TURNS):
            messages.append(question(turn, *([photograph] if number == 0 else [])))
            leads.clear()
            with session.chat(messages, max_new_tokens=12) as stream:
                text = "".join(stream)
                # From the first near tie on, either token is right, and what follows hangs on it.
                certain = next((i for i, lead in enumerate(leads) if lead <= LEAD[precision]), len(leads))
                assert stream.token_ids[:certain] == fresh(bundle, messages, 12)[:certain], f"turn {number}"
                compared += certain if number else 0
                reused = stream.metrics.kv_prefix_reused
                # At least the prompt before; the answer after it may be cut into other tokens than were generated.
                assert reused >= known
                known = stream.metrics.prompt_tokens
            messages.append({"role": "assistant", "content": text})
    assert compared >= 12, "of the turns that reuse the cache"


def test_another_question_about_the_same_image_reuses_the_image(exported: Exported, photograph: Path) -> None:
    bundle = exported("fp32")
    with VlmSession.open(bundle, threads=1) as session:
        answer(session, [question("What is in this picture?", photograph)])
        with session.chat([question("Describe it.", photograph)], max_new_tokens=16) as stream:
            for _ in stream:
                pass
        assert stream.metrics.kv_prefix_reused > stream.metrics.image_tokens
        assert stream.metrics.image_was_cached
        assert stream.token_ids == fresh(bundle, [question("Describe it.", photograph)])


@pytest.mark.parametrize("name", ["fp32, chunks of 7", "paper"])
def test_cancelled_while_decoding(name: str, exported: Exported, ask: Messages) -> None:
    bundle = exported(name)
    expected = fresh(bundle, ask)
    with VlmSession.open(bundle, threads=1) as session:
        with session.chat(ask, max_new_tokens=16) as stream:
            next(stream)
            next(stream)
            stream.cancel()
            assert list(stream) == []
        assert stream.metrics.stop_reason == "cancelled"
        assert 2 <= len(stream.token_ids) < len(expected)
        assert answer(session, ask) == expected
        other = [question("Describe the image, please.")]
        assert answer(session, other) == fresh(bundle, other)


@pytest.mark.parametrize("chunks", [0, 1, 5])
def test_cancelled_while_prefilling(chunks: int, exported: Exported, ask: Messages, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = exported("fp32, chunks of 7")
    expected = fresh(bundle, ask)
    with VlmSession.open(bundle, threads=1) as session:
        stream = session.chat(ask, max_new_tokens=16)
        done: list[int] = []
        prefill_chunk = Decoder._prefill_chunk

        def cancelling(self: Decoder, *arguments: Any) -> None:
            if len(done) == chunks:
                stream.cancel()
            prefill_chunk(self, *arguments)
            done.append(1)

        monkeypatch.setattr(Decoder, "_prefill_chunk", cancelling)
        assert list(stream) == []
        # The chunk in which it was cancelled may still be whole; no further one is begun.
        assert len(done) <= chunks + 1
        assert (stream.metrics.stop_reason, stream.token_ids) == ("cancelled", ())
        monkeypatch.undo()
        assert answer(session, ask) == expected


def test_cancelled_from_another_thread_at_any_moment(exported: Exported, ask: Messages) -> None:
    """In an engine's run or between two: what was answered until then is right, and so is the next answer."""
    bundle = exported("fp32, chunks of 7")
    expected = fresh(bundle, ask)
    with VlmSession.open(bundle, threads=1) as session:
        for moment in range(12):
            stream = session.chat(ask, max_new_tokens=16)
            canceller = threading.Timer(moment * 0.002, stream.cancel)
            canceller.start()
            for _ in stream:
                pass
            canceller.join()
            assert stream.metrics.stop_reason in ("cancelled", "max_new_tokens", "stop_token")
            assert stream.token_ids == expected[: len(stream.token_ids)]
        assert answer(session, ask) == expected


def test_an_image_is_encoded_once_however_it_comes(exported: Exported, photograph: Path) -> None:
    trace = Trace(enabled=True)
    picture = Image.open(photograph)
    with VlmSession.open(exported("paper"), threads=1, trace=trace) as session:
        images = [session.encode(source) for source in (photograph, photograph.read_bytes(), picture, np.asarray(picture))]
        for image in images:
            image.wait()
        assert [image.was_cached for image in images] == [False, True, True, True]
        assert len({image.key for image in images}) == 1
        # Seven tiles are two batches.
        assert sum(event["name"] == "vision_encoder" for event in trace.events) == 2
        other = session.encode(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        other.wait()
        assert not other.was_cached
        assert not np.array_equal(other.tokens, images[0].tokens)


def test_an_image_encoded_before_the_question(exported: Exported, photograph: Path, ask: Messages) -> None:
    bundle = exported("paper")
    with VlmSession.open(bundle, threads=1) as session:
        image = session.encode(photograph)
        image.wait()
        with session.chat([question("What is in this picture?", image)], max_new_tokens=16) as stream:
            for _ in stream:
                pass
        assert stream.metrics.image_was_cached
        assert stream.token_ids == fresh(bundle, ask)


def open_graphs() -> int:
    gc.collect()
    return sum(type(item) is onnxruntime.InferenceSession for item in gc.get_objects())


@pytest.mark.parametrize(
    ("policy", "share", "left"), [("keep", 0.0, 5), ("after_encode", 1.0, 2), ("on_pressure", 0.01, 2), ("on_pressure", 0.9, 5)]
)
def test_release_policies_drop_the_vision_graphs_and_change_no_token(
    policy: Any, share: float, left: int, exported: Exported, photograph: Path, ask: Messages, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = exported("paper")
    expected = fresh(bundle, ask)
    monkeypatch.setattr(encoding, "available_share", lambda: share)
    before = open_graphs()
    with VlmSession.open(bundle, threads=1, release=policy) as session:
        assert open_graphs() == before + 5
        assert answer(session, ask) == expected
        assert open_graphs() == before + left
        mirrored = Image.open(photograph).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        again = [question("What is in this picture?", mirrored)]
        assert answer(session, again) == fresh(bundle, again)
        assert open_graphs() == before + left
    assert open_graphs() == before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux and Android tell what is mapped")
@pytest.mark.parametrize("name", ["paper", "fp32"])
def test_an_opened_bundle_holds_no_page_of_its_weight_files(name: str, exported: Exported, ask: Messages) -> None:
    bundle = exported(name)
    expected = fresh(bundle, ask)
    with VlmSession.open(bundle, threads=1) as session:
        assert mapped_and_resident(bundle)[0] > 0
        assert mapped_and_resident(bundle)[1] == 0
        assert answer(session, ask) == expected


def mapped_and_resident(folder: Path) -> tuple[int, int]:
    """Kilobytes of the files below a folder that this process maps, and how many of them are in memory."""
    mapped, resident, inside = 0, 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if re.match(r"[0-9a-f]+-", line):
            inside = str(folder) in line
        elif inside and line.startswith("Size:"):
            mapped += int(line.split()[1])
        elif inside and line.startswith("Rss:"):
            resident += int(line.split()[1])
    return mapped, resident


def test_vision_stages_of_another_bundle_in_its_place_are_not_loaded(
    exported: Exported, photograph: Path, ask: Messages, tmp_path: Path
) -> None:
    place, other = tmp_path / "bundle", tmp_path / "other"
    shutil.copytree(exported("paper"), place)
    shutil.copytree(exported("paper"), other)
    mirrored = Image.open(photograph).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    with VlmSession.open(place, threads=1, release="after_encode") as session:
        answer(session, ask)
        place.rename(tmp_path / "old")
        other.rename(place)
        with pytest.raises(BundleError, match="replaced or changed since it was opened"):
            answer(session, [question("What is in this picture?", mirrored)])
    with VlmSession.open(place, threads=1) as session:
        assert answer(session, ask)


def test_an_image_of_another_bundles_session_is_refused(exported: Exported, photograph: Path) -> None:
    with VlmSession.open(exported("fp32"), threads=1) as one, VlmSession.open(exported("paper"), threads=1) as other:
        image = one.encode(photograph)
        messages = [question("What is in this picture?", image)]
        with pytest.raises(UsageError, match="encoded by a session of another bundle"):
            answer(other, messages)
        expected = answer(one, messages)
    with VlmSession.open(exported("fp32"), threads=1) as session:
        assert answer(session, messages) == expected


def test_two_sessions_side_by_side(exported: Exported, photograph: Path) -> None:
    asked = [[question(text, photograph)] for text in TURNS] + [[question(text)] for text in TURNS]
    bundles = [exported("paper"), exported("fp32")]
    expected = [[fresh(bundle, messages) for messages in asked] for bundle in bundles]

    def all_answers(bundle: Path) -> list[tuple[int, ...]]:
        with VlmSession.open(bundle, threads=1) as session:
            return [answer(session, messages) for messages in asked]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(all_answers, bundles * 2))
    assert found == expected * 2


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(
    ("name", "batch"),
    [("fp32", None), ("fp32", 1), ("fp32", 2), ("fp32", 7), ("fp32, fixed batch", None), ("fp32, fixed batch", 8)],
)
def test_batches_and_overlap_change_no_token(
    name: str, batch: int | None, overlap: bool, exported: Exported, photograph: Path, ask: Messages, leads: list[float]
) -> None:
    expected = fresh(exported("fp32"), ask)
    with VlmSession.open(exported("fp32"), threads=1) as session:
        visual = session.encode(photograph).tokens
    with VlmSession.open(exported(name), threads=1, vision_batch=batch, overlap=overlap) as session:
        np.testing.assert_allclose(session.encode(photograph).tokens, visual, rtol=1e-4, atol=1e-5)
        assert answer(session, ask) == expected
    assert min(leads) > LEAD["fp32"]


def test_int8_prefill_is_the_same_function_but_for_rounding(exported: Exported) -> None:
    """Prefill reads the INT4 values rounded once more, decode the INT4 values themselves; both write one cache."""
    bundles = [exported("paper"), exported("INT8 prefill")]
    variants = [parse_manifest((bundle / "manifest.json").read_text(encoding="utf-8")).variants[0] for bundle in bundles]
    assert [variant.stages["prefill"].file for variant in variants] == ["ort-cpu/decoder.onnx", "ort-cpu/prefill.onnx"]
    assert {variant.stages["decode"].file for variant in variants} == {"ort-cpu/decoder.onnx"}
    layers = variants[0].kv_cache.layers
    assert "MatMulNBits" not in variants[1].stages["prefill"].kernels
    assert [tensor.name for tensor in variants[1].stages["prefill"].outputs if "present" not in tensor.name] == []
    assert variants[1].stages["prefill"].kernels["DynamicQuantizeMatMul"] == 4 * layers
    assert variants[1].stages["decode"].kernels["MatMulNBits"] == 4 * layers + 1
    ids = [(7 * number + 3) % 300 + 4 for number in range(200)]
    found = []
    for bundle in [*bundles, exported("fp32")]:
        variant = parse_manifest((bundle / "manifest.json").read_text(encoding="utf-8")).variants[0]
        with open_stages(variant, bundle, threads=1) as stages:
            decoder = stages.decoder
            prefilled = decoder.prefill(decoder.embed(ids)).copy()
            found.append((prefilled, decoder.step(5).copy()))
    for blocks, rows, exact in zip(*found, strict=True):
        assert not np.array_equal(blocks, rows)
        # A random model makes much of little: what INT4 did to it is the measure.
        assert np.linalg.norm(rows - blocks) < 0.5 * np.linalg.norm(blocks - exact)


def test_weights_made_unsigned_give_the_same_numbers(
    exported: Exported, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on x86 processors where products of signed weights saturate (docs/quantization.md)."""
    bundle = exported("INT8 prefill")
    variant = parse_manifest((bundle / "manifest.json").read_text(encoding="utf-8")).variants[0]
    found = []
    for _ in range(2):
        with VlmSession.open(bundle, threads=1) as session:
            visual = session.encode(photograph).tokens.copy()
        with open_stages(variant, bundle, threads=1) as stages:
            decoder = stages.decoder
            decoder.prefill(decoder.embed([(7 * number + 3) % 300 + 4 for number in range(200)]))
            found.append((visual, decoder.step(5).copy()))
        monkeypatch.setattr(int8_products, "saturating", lambda: True)
    for here, unsigned in zip(*found, strict=True):
        np.testing.assert_allclose(unsigned, here, rtol=1e-5, atol=1e-5)


def test_int8_batches_stay_close(exported: Exported, photograph: Path) -> None:
    """INT8 activations share one range per batch (docs/quantization.md), so batches may differ, but only by rounding."""
    found = []
    for batch in (1, 2, 4, 7):
        with VlmSession.open(exported("paper"), threads=1, vision_batch=batch) as session:
            found.append(session.encode(photograph).tokens.reshape(-1).astype(np.float64))
    with VlmSession.open(exported("fp32"), threads=1) as session:
        exact = session.encode(photograph).tokens.reshape(-1).astype(np.float64)

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.linalg.norm(a - b) / np.linalg.norm(b))

    assert max(distance(tokens, exact) for tokens in found) < 0.05
    assert max(distance(tokens, found[0]) for tokens in found) < 0.05


@pytest.mark.parametrize("name", ["paper", "fp32, fixed batch"])
def test_verification_runs_the_stages_as_the_runtime_does(name: str, exported: Exported, photograph: Path) -> None:
    bundle = exported(name)
    manifest = parse_manifest((bundle / "manifest.json").read_text(encoding="utf-8"))
    picture = load_image(photograph, manifest.image)
    plan = plan_tiles(picture.width, picture.height, manifest.tiling, manifest.image_tokens)
    tiles = make_tiles(picture, plan, manifest.tiling, manifest.image, manifest.image_tokens.thumbnail_first)
    assert len(tiles) % manifest.variants[0].vision_batch
    values = tiles
    with open_stages(manifest.variants[0], bundle, threads=1) as stages:
        for stage in VISION_STAGES:
            values = stages.run(stage, values)
    newline = np.fromfile(bundle / manifest.image_tokens.newline, "<f4") if manifest.image_tokens.newline else None
    with VlmSession.open(bundle, threads=1) as session:
        np.testing.assert_array_equal(
            arrange_tokens(values, plan, manifest.image_tokens, newline), session.encode(photograph).tokens
        )


def test_chunks_change_no_token(exported: Exported, photograph: Path, leads: list[float]) -> None:
    for text in TURNS:
        messages = [question(text, photograph)]
        assert fresh(exported("fp32"), messages) == fresh(exported("fp32, chunks of 7"), messages)
    assert min(leads) > LEAD["fp32"]


@pytest.mark.parametrize("stage", ["patch_embed", "vision_encoder", "connector"])
def test_closed_while_encoding(stage: str, exported: Exported, photograph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached, run = threading.Event(), VisionEncoder._run

    def telling(self: VisionEncoder, name: str, *arguments: Any) -> Any:
        if name == stage:
            reached.set()
        return run(self, name, *arguments)

    monkeypatch.setattr(VisionEncoder, "_run", telling)
    before = open_graphs()
    session = VlmSession.open(exported("paper"), threads=1)
    pictures = [Image.open(photograph).rotate(angle) for angle in range(8)]
    images = [session.encode(picture) for picture in pictures]
    assert reached.wait(60)
    session.close()
    session.close()
    assert all(image.done for image in images)
    with pytest.raises(Cancelled):
        images[-1].wait()
    with pytest.raises(UsageError, match="closed"):
        session.encode(photograph)
    with pytest.raises(UsageError, match="closed"):
        session.chat([question("What is in this picture?")])
    monkeypatch.undo()
    del session
    assert open_graphs() == before


@pytest.mark.parametrize("name", ["fp32", "paper"])
def test_cached_decode_equals_prefill_of_the_whole(name: str, exported: Exported) -> None:
    """One token after the other into the cache, or all at once: the same logits, up to the cache's own rounding.

    In float32 only the order of sums differs. With INT8 a value between two codes may be rounded the other way: an
    activation, or a key or value in the cache. Single steps without any such flip agree to the last bits, most do. Ninety-nine
    tokens of three layers with such flips stay within a tenth of the logits' spread; a wrong position, scale or column
    moves them by about all of it.
    """
    bundle = exported(name)
    manifest = parse_manifest((bundle / "manifest.json").read_text(encoding="utf-8"))
    exact = 0
    with open_stages(manifest.variants[0], bundle, threads=1) as stages:
        decoder = stages.decoder
        for shift in range(4):
            ids = [(7 * number + 3 + 11 * shift) % 300 + 4 for number in range(200)]
            rows = decoder.embed(ids)
            whole = decoder.prefill(rows).copy()
            tolerance = 1e-4 if name == "fp32" else 0.1 * float(whole.std())
            decoder.prefill(rows[:199])
            one_step = decoder.step(ids[199]).copy()
            np.testing.assert_allclose(one_step, whole, atol=tolerance)
            exact += np.allclose(one_step, whole, atol=1e-4)
            decoder.prefill(rows[:101])
            for token in ids[101:]:
                many_steps = decoder.step(token)
            assert decoder.length == 200
            np.testing.assert_allclose(many_steps, whole, atol=tolerance)
    assert exact >= 2
