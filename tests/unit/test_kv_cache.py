from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pocketvlm.runtime.kv_cache import KvCache


def columns(spec: Any, length: int, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    names = [f"new_{kind}.{layer}" for kind in ("key", "value") for layer in range(spec.layers)]
    return {name: random.integers(-99, 99, (1, spec.kv_heads, length, spec.head_dim)).astype(spec.dtype) for name in names}


@pytest.mark.parametrize("dtype", ["int8", "uint8", "float16", "float32"])
def test_appended_columns_stand_one_after_the_other(contract: Any, dtype: str) -> None:
    cache = KvCache(contract.kv_spec(dtype=dtype))
    first, second = columns(cache.spec, 5, 1), columns(cache.spec, 8, 2)
    cache.append(first, 5)
    cache.append(second, 3)
    assert cache.length == 8
    for name, buffer in cache.past().items():
        new = name.replace("past", "new")
        assert buffer.dtype == dtype
        np.testing.assert_array_equal(buffer[:, :, :8], np.concatenate([first[new], second[new][:, :, :3]], axis=2))
        assert not buffer[:, :, 8:].any()


def test_past_and_present_are_the_same_buffers(contract: Any) -> None:
    cache = KvCache(contract.kv_spec())
    present = cache.present()
    assert len(present) == 4
    for name, buffer in cache.past().items():
        assert present[name.replace("past", "present")] is buffer


def test_size_counts_all_buffers(contract: Any) -> None:
    # 2 layers, key and value, 2 heads, 64 positions, 2 values, of 4 bytes each
    assert KvCache(contract.kv_spec(dtype="float32")).nbytes == 2 * 2 * 2 * 64 * 2 * 4


def test_what_does_not_fit_changes_nothing(contract: Any) -> None:
    cache = KvCache(contract.kv_spec(capacity=6))
    cache.append(columns(cache.spec, 5, 1), 5)
    before = {name: buffer.copy() for name, buffer in cache.past().items()}
    with pytest.raises(ValueError, match="do not fit"):
        cache.append(columns(cache.spec, 2, 2), 2)
    assert cache.length == 5
    for name, buffer in cache.past().items():
        np.testing.assert_array_equal(buffer, before[name])


def test_truncate_only_shortens(contract: Any) -> None:
    cache = KvCache(contract.kv_spec())
    cache.advance(5)
    cache.truncate(2)
    assert cache.length == 2
    for length in (-1, 3):
        with pytest.raises(ValueError, match="cannot cut"):
            cache.truncate(length)


def test_transposed_keys_get_their_columns_at_the_end_of_the_last_dimension(contract: Any) -> None:
    cache = KvCache(contract.kv_spec(protocol="columns", keys_transposed=True))
    first, second = columns(cache.spec, 5, 1), columns(cache.spec, 8, 2)
    for new, count in ((first, 5), (second, 3)):
        turned = {name: array.swapaxes(2, 3) if "key" in name else array for name, array in new.items()}
        cache.append(turned, count)
    for name, buffer in cache.past().items():
        new = name.replace("past", "new")
        expected = np.concatenate([first[new], second[new][:, :, :3]], axis=2)
        stored = buffer.swapaxes(2, 3) if "key" in name else buffer
        assert stored.shape == (1, 2, 64, 2)
        np.testing.assert_array_equal(stored[:, :, :8], expected)
        assert not stored[:, :, 8:].any()
