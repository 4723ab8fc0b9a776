"""`pocketvlm tune`: settings ranked by the NPU compiler's own estimate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pocketvlm.errors import PocketVLMError, UsageError
from pocketvlm.toolchain.commands.tune import tune
from pocketvlm.toolchain.recipe import load_recipe

from .tiny_bluelm_v import TinyBlueLMV


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyBlueLMV(positions=256).save(tmp_path_factory.mktemp("tune") / "checkpoint", [(1, 1), (2, 1)])


def test_the_recipe_holds_the_winners_and_tells_what_they_rest_on(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tmp_path / "start.yaml"
    start.write_text("decoder_weights: {method: rtn}\ncalibration: {text: prose.txt, images: [a]}\n")
    (tmp_path / "sub").mkdir()
    output = tmp_path / "sub" / "tuned.yaml"
    tune(str(checkpoint), "qnn:SM8650", output, start, None, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert "never a phone's latency" in told["label"]
    choices = {choice["key"]: choice for choice in told["choices"]}
    assert list(choices) == ["qnn.vision_batch", "chunk_size", "qnn.attention", "qnn.vtcm_mb"]
    for choice in choices.values():
        best = min(choice["candidates"], key=lambda item: item["milliseconds"])
        assert choice["winner"] == best["value"]
        assert all(item["milliseconds"] > 0 for item in choice["candidates"])
    recipe = load_recipe(output)
    assert recipe.targets == ("qnn:SM8650",)
    assert str(recipe.qnn.vision_batch) == choices["qnn.vision_batch"]["winner"]
    assert str(recipe.chunk_size) == choices["chunk_size"]["winner"]
    assert recipe.qnn.attention == choices["qnn.attention"]["winner"]
    assert str(recipe.qnn.vtcm_mb) == choices["qnn.vtcm_mb"]["winner"]
    assert recipe.decoder_weights == load_recipe(start).decoder_weights
    assert Path(recipe.calibration.images[0]).resolve() == (tmp_path / "a").resolve()
    assert Path(recipe.calibration.text or "").resolve() == (tmp_path / "prose.txt").resolve()
    opening = output.read_text().partition("\n\n")[0]
    assert opening.count("<- taken") == 4
    assert "never a phone's latency" in opening


def test_a_file_that_exists_is_not_overwritten(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("")
    with pytest.raises(UsageError, match=r"mine\.yaml: exists"):
        tune(str(checkpoint), "qnn:SM8650", tmp_path / "mine.yaml", None, None, as_json=False)


@pytest.mark.parametrize(("target", "told"), [("ort-cpu", "no compiler"), ("qnn:SM8651", "did you mean qnn:SM8650")])
def test_targets_without_an_estimate(checkpoint: Path, tmp_path: Path, target: str, told: str) -> None:
    with pytest.raises(PocketVLMError) as error:
        tune(str(checkpoint), target, tmp_path / "recipe.yaml", None, None, as_json=False)
    assert told in str(error.value)
    assert not list(tmp_path.iterdir())
