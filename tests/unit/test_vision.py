from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from pocketvlm.errors import BundleError, Cancelled
from pocketvlm.runtime.manifest import StageSpec
from pocketvlm.runtime.trace import Trace
from pocketvlm.runtime.vision import ImageCache, VisionEncoder


class Stage:
    """Adds `add` to its input; `before` is called with the number of the run."""

    def __init__(self, source: str, target: str, add: float, before: Any = None) -> None:
        self.names = source, target
        self.add = add
        self.before = before
        self.batches: list[int] = []
        self.cancelled = threading.Event()
        self.closed = False

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        assert not self.closed
        (values,) = inputs.values()
        assert set(inputs) == {self.names[0]}
        self.batches.append(len(values))
        if self.before:
            self.before(len(self.batches) - 1)
        return {self.names[1]: values + np.float32(self.add)}

    def cancel(self) -> None:
        self.cancelled.set()

    def close(self) -> None:
        self.closed = True


def stage_table(patch: Any = None, vision: Any = None) -> dict[str, Stage]:
    return {
        "patch_embed": Stage("pixels", "patches", 1, patch),
        "vision_encoder": Stage("patches", "features", 10, vision),
        "connector": Stage("features", "tokens", 100),
    }


def encoder(contract: Any, table: dict[str, Stage], **options: Any) -> VisionEncoder:
    size = options.pop("size", "B")
    return VisionEncoder(contract.vision_variant(contract.vision_stages(size)), table.__getitem__, **{"batch": 4, **options})


def tiles(count: int) -> Any:
    return np.arange(count, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 4, 4), np.float32)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("size", ["B", 1, 4])
@pytest.mark.parametrize("count", [1, 4, 9])
def test_every_tile_goes_through_all_stages_in_order(contract: Any, overlap: bool, size: Any, count: int) -> None:
    result = encoder(contract, stage_table(), overlap=overlap, size=size).encode(tiles(count))
    np.testing.assert_array_equal(result, tiles(count) + 111)


@pytest.mark.parametrize(("size", "sizes"), [("B", [4, 4, 1]), (4, [4, 4, 4]), (1, [1] * 9)])
def test_batches_have_the_size_that_the_graph_takes(contract: Any, size: Any, sizes: list[int]) -> None:
    table = stage_table()
    encoder(contract, table, size=size).encode(tiles(9))
    for stage in table.values():
        assert stage.batches == sizes


def test_the_next_batch_is_embedded_while_the_current_one_is_encoded(contract: Any) -> None:
    reached = [threading.Event() for _ in range(3)]

    def wait_for_the_next_patches(number: int) -> None:
        if number < 2:
            assert reached[number + 1].wait(20), "patch_embed of the next batch did not run beside this one"

    table = stage_table(patch=lambda number: reached[number].set(), vision=wait_for_the_next_patches)
    np.testing.assert_array_equal(encoder(contract, table).encode(tiles(9)), tiles(9) + 111)


def test_without_overlap_the_stages_take_turns_on_one_thread(contract: Any) -> None:
    calls: list[tuple[str, int, int]] = []
    table = stage_table(
        patch=lambda number: calls.append(("patch", number, threading.get_ident())),
        vision=lambda number: calls.append(("vision", number, threading.get_ident())),
    )
    encoder(contract, table, overlap=False).encode(tiles(9))
    here = threading.get_ident()
    assert calls == [(stage, number, here) for number in range(3) for stage in ("patch", "vision")]


def test_the_producer_is_at_most_three_batches_ahead(contract: Any) -> None:
    """Two wait in the queue, one in the producer's hand."""
    done = [0, 0]

    def patch(number: int) -> None:
        done[0] = number + 1
        assert done[0] - done[1] <= 4

    def vision(number: int) -> None:
        done[1] = number

    encoder(contract, stage_table(patch, vision), batch=1).encode(tiles(40))


@pytest.mark.parametrize("overlap", [True, False])
def test_cancelled_between_stages(contract: Any, overlap: bool) -> None:
    stop = threading.Event()
    table = stage_table(vision=lambda number: stop.set() if number == 1 else None)
    vision = encoder(contract, table, batch=1, overlap=overlap)
    before = threading.active_count()
    with pytest.raises(Cancelled):
        vision.encode(tiles(30), stop.is_set)
    assert len(table["connector"].batches) == 1
    assert threading.active_count() == before
    np.testing.assert_array_equal(vision.encode(tiles(3)), tiles(3) + 111)


@pytest.mark.parametrize("failing", ["patch", "vision"])
def test_an_error_of_either_thread_reaches_the_caller(contract: Any, failing: str) -> None:
    def fail(number: int) -> None:
        if number == 2:
            raise RuntimeError("broken stage")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="broken stage"):
        encoder(contract, stage_table(**{failing: fail}), batch=1).encode(tiles(30))
    assert threading.active_count() == before


def test_released_stages_are_closed_and_opened_again(contract: Any) -> None:
    opened: list[Stage] = []

    def open_stage(name: str) -> Stage:
        opened.append(stage_table()[name])
        return opened[-1]

    vision = VisionEncoder(contract.vision_variant(contract.vision_stages()), open_stage, batch=4)  # type: ignore[arg-type]
    assert not vision.loaded
    vision.encode(tiles(1))
    vision.release()
    assert [stage.closed for stage in opened] == [True] * 3
    assert not vision.loaded
    np.testing.assert_array_equal(vision.encode(tiles(2)), tiles(2) + 111)
    assert len(opened) == 6


def test_a_stage_that_fails_to_open_closes_the_others(contract: Any) -> None:
    table = stage_table()

    def open_stage(name: str) -> Stage:
        if name == "connector":
            raise BundleError("damaged")
        return table[name]

    vision = VisionEncoder(contract.vision_variant(contract.vision_stages()), open_stage, batch=4)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="damaged"):
        vision.load()
    assert table["patch_embed"].closed
    assert not vision.loaded


def test_the_trace_shows_stage_batch_and_tiles(contract: Any) -> None:
    trace = Trace()
    encoder(contract, stage_table(), trace=trace).encode(tiles(9))
    spans = {(event["name"], event["args"]["batch"]): event for event in trace.events if "batch" in event["args"]}
    stages = ("patch_embed", "vision_encoder", "connector")
    assert {key: event["args"]["tiles"] for key, event in spans.items()} == {
        (stage, batch): tile_count for stage in stages for batch, tile_count in enumerate([4, 4, 1])
    }
    assert spans["patch_embed", 0]["tid"] != spans["vision_encoder", 0]["tid"]


def test_stages_with_other_names_are_refused(contract: Any) -> None:
    stages = contract.vision_stages()
    stages["connector"] = stages["vision_encoder"]
    with pytest.raises(BundleError, match="stage connector"):
        VisionEncoder(contract.vision_variant(stages), stage_table().__getitem__, batch=1)


def test_a_stage_in_parts_passes_on_what_later_parts_take(contract: Any) -> None:
    hidden = contract.tensor("hidden.1", "float32", 2, 2, 3)
    stages = contract.vision_stages(2)
    patches, features = stages["vision_encoder"].inputs[0], stages["vision_encoder"].outputs[0]
    del stages["vision_encoder"]
    stages["vision_encoder.0"] = StageSpec("v/0", (patches,), (hidden,))
    stages["vision_encoder.1"] = StageSpec("v/1", (hidden, patches), (features,))

    class Sum(Stage):
        def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
            return {"features": inputs["hidden.1"] + inputs["patches"]}

    table = stage_table()
    table |= {"vision_encoder.0": Stage("patches", "hidden.1", 10), "vision_encoder.1": Sum("", "", 0)}
    vision = VisionEncoder(contract.vision_variant(stages), table.__getitem__, batch=4)
    np.testing.assert_array_equal(vision.encode(tiles(3)), 2 * (tiles(3) + 1) + 110)
    stages["vision_encoder.1"] = StageSpec("v/1", (contract.tensor("other", "float32", 2, 2, 3),), (features,))
    with pytest.raises(BundleError, match=r"stage vision_encoder \(v/1\) differs .* in other"):
        VisionEncoder(contract.vision_variant(stages), table.__getitem__, batch=4)


def test_the_cache_drops_what_was_used_longest_ago() -> None:
    cache = ImageCache(max_bytes=100)
    arrays = {name: np.full(10, index, np.float32) for index, name in enumerate("abc")}
    cache.put("a", arrays["a"])
    cache.put("b", arrays["b"])
    assert cache.get("a") is arrays["a"]
    cache.put("c", arrays["c"])
    assert cache.get("b") is None
    assert cache.get("a") is arrays["a"]
    assert cache.get("c") is arrays["c"]


def test_the_cache_refuses_what_is_larger_than_itself() -> None:
    cache = ImageCache(max_bytes=100)
    cache.put("small", np.zeros(10, np.float32))
    cache.put("large", np.zeros(26, np.float32))
    assert cache.get("large") is None
    assert cache.get("small") is not None
