"""Results that an interrupted export leaves for the next one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pocketvlm.errors import Cancelled, EnvironmentFault, GateError
from pocketvlm.toolchain.interrupts import Terminated
from pocketvlm.toolchain.kept import COMPILED, RESULTS, Kept, digest_of, what_is_kept
from pocketvlm.toolchain.progress import SilentProgress
from pocketvlm.toolchain.resume import _how_to_go_on, telling_what_is_kept, work_path


def test_results_come_back_in_every_bit(tmp_path: Path) -> None:
    codes, scales = np.arange(6, dtype=np.uint8).reshape(2, 3), np.array([0.1, 1e-30], np.float32)
    ranges = {"a": (-0.1, 1 / 3), "b": (0.0, 1e-300)}
    kept = Kept(tmp_path / "kept", ["model"])
    kept.keep_arrays("gptq", ["scheme"], {"x/codes": codes, "x/scales": scales})
    kept.keep_pairs("ranges", [1], ranges)
    found = Kept(tmp_path / "kept", ["model"]).arrays("gptq", ["scheme"])
    assert found is not None
    np.testing.assert_array_equal(found["x/codes"], codes)
    np.testing.assert_array_equal(found["x/scales"], scales)
    assert kept.pairs("ranges", [1]) == ranges
    assert not list((tmp_path / "kept").glob("*.partial"))


def test_nothing_comes_back_for_other_input(tmp_path: Path) -> None:
    kept = Kept(tmp_path, ["model"])
    kept.keep_arrays("gptq", ["scheme", 1], {"x": np.zeros(2)})
    assert kept.arrays("gptq", ["scheme", 2]) is None
    assert kept.arrays("distilled", ["scheme", 1]) is None
    assert Kept(tmp_path, ["other"]).arrays("gptq", ["scheme", 1]) is None
    assert kept.pairs("ranges", []) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"a": 1}', b"\xff" * 64])
def test_damaged_files_count_as_missing(tmp_path: Path, content: bytes) -> None:
    kept = Kept(tmp_path, [])
    kept.keep_arrays("gptq", [], {"x": np.zeros(2)})
    kept.keep_pairs("ranges", [], {"a": (0.0, 1.0)})
    for path in tmp_path.iterdir():
        path.write_bytes(content)
    assert kept.arrays("gptq", []) is None
    assert kept.pairs("ranges", []) is None


def test_without_a_folder_or_room_nothing_is_kept_and_nothing_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for kept in (Kept(None, []), Kept(tmp_path / "file" / "folder", [])):
        kept.keep_arrays("gptq", [], {"x": np.zeros(2)})
        kept.keep_pairs("ranges", [], {"a": (0.0, 1.0)})
        assert kept.arrays("gptq", []) is None
        assert kept.pairs("ranges", []) is None


def test_digests_tell_values_shapes_and_types_apart() -> None:
    zeros = np.zeros(4, np.float32)
    others = [zeros + 1, zeros.reshape(2, 2), zeros.astype(np.float64), zeros.view(np.int32)]
    assert len({digest_of([array]) for array in (zeros, *others)}) == 5
    assert digest_of([zeros, zeros]) != digest_of([np.zeros(8, np.float32)])
    assert digest_of([zeros]) == digest_of([zeros.copy()])


def compiled(work: Path, name: str) -> None:
    folder = work / "compiled" / name
    folder.mkdir(parents=True)
    (folder / COMPILED).touch()


def test_what_a_folder_of_work_holds_is_told_in_words(tmp_path: Path) -> None:
    assert what_is_kept(tmp_path / "nowhere") == ""
    (tmp_path / "graphs").mkdir()
    compiled(tmp_path, "a.partial")
    assert what_is_kept(tmp_path) == ""
    compiled(tmp_path, "a")
    assert what_is_kept(tmp_path) == "1 compiled part"
    compiled(tmp_path, "b")
    kept = Kept(tmp_path / RESULTS, [])
    for name in ("gptq", "distilled"):
        kept.keep_arrays(name, [], {"x": np.zeros(2)})
    kept.keep_pairs("ranges", ["vision"], {})
    kept.keep_pairs("ranges", ["decoder"], {})
    assert what_is_kept(tmp_path) == "2 compiled parts, the quantized decoder, ranges"


def test_what_need_not_be_worked_out_again_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    kept = Kept(tmp_path, [], told.append)
    kept.keep_arrays("gptq", [], {"x": np.zeros(2)})
    kept.keep_pairs("ranges", [], {})
    assert kept.arrays("gptq", ["other"]) is None
    assert kept.pairs("ranges", ["other"]) is None
    assert told == []
    kept.arrays("gptq", [], "GPTQ: per channel")
    kept.arrays("gptq", [])
    kept.pairs("ranges", [])
    assert told == ["GPTQ: per channel", "gptq", "ranges"]


MENDED = "when that is mended, or the recipe (-c) is changed, the same command goes on with it"


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (KeyboardInterrupt(), "the same command goes on with it"),
        (Terminated(), "the same command goes on with it"),
        (Cancelled("interrupted"), "the same command goes on with it"),
        (GateError("top-1 agreement 0.1 < 0.9"), "after you have changed the recipe (-c), the same command goes on with it"),
        (
            EnvironmentFault("not enough disk space", "free some space"),
            MENDED,
        ),
        (MemoryError(), MENDED),
    ],
)
def test_after_a_failure_the_way_to_go_on_is_one_that_leads_on(error: BaseException, how: str) -> None:
    assert _how_to_go_on(error) == how


def test_what_is_left_is_told_only_where_something_is(tmp_path: Path) -> None:
    class Notes(SilentProgress):
        def note(self, text: str) -> None:
            lines.append(text)

    lines: list[str] = []
    work = work_path(tmp_path / "bundle")

    def fail() -> None:
        lines.clear()
        with pytest.raises(GateError), telling_what_is_kept(tmp_path / "bundle", Notes()):
            raise GateError("missed")

    fail()
    assert lines == []
    (work / "graphs").mkdir(parents=True)
    fail()
    assert lines == [f"left in {work}: files on the way; an export to the same place that succeeds removes them"]
    compiled(work, "a")
    fail()
    assert lines == [
        f"an earlier export has left in {work}: 1 compiled part; what still fits is taken",
        f"kept in {work}: 1 compiled part; after you have changed the recipe (-c), the same command goes on with it",
    ]
