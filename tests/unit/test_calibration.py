from __future__ import annotations

import pytest

from pocketvlm.toolchain.quantize.calibration import pairs


@pytest.mark.parametrize(("images", "prompts"), [(3, 4), (8, 7), (1, 4), (5, 1), (2, 2), (1, 1)])
def test_the_result_is_judged_by_other_pairs_than_calibration_saw(images: int, prompts: int) -> None:
    seen, judged = pairs(images, prompts, 2)
    assert {image for image, _ in seen} == set(range(images))
    assert {prompt for _, prompt in seen} == set(range(prompts))
    assert len(seen) == max(images, prompts)
    assert all(0 <= image < images and 0 <= prompt < prompts for image, prompt in judged)
    if images > 1 and prompts > 1:
        assert len(judged) == 2
        assert not set(judged) & set(seen)
    else:
        # One image with all prompts, or one prompt about all images: there is no other pair.
        assert judged == seen[:2]
