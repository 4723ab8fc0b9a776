"""Results that an interrupted export leaves for the next one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pocketvlm.toolchain.kept import Kept, digest_of


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
