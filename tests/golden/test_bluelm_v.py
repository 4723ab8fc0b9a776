"""bluelm_v against transformers' SiglipVisionModel and LlamaForCausalLM, put together with plain torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import skimage.data
import torch
from PIL import Image

from pocketvlm.errors import GateError, RecipeError
from pocketvlm.runtime import VlmSession
from pocketvlm.runtime.prompt import PromptTokens
from pocketvlm.toolchain.checkpoint import Checkpoint
from pocketvlm.toolchain.export import export_checkpoint
from pocketvlm.toolchain.model import EagerModel
from pocketvlm.toolchain.prepare import prepare
from pocketvlm.toolchain.progress import SilentProgress
from pocketvlm.toolchain.quality import TaskQuality
from pocketvlm.toolchain.quantize.calibration import encode_image, splice
from pocketvlm.toolchain.recipe import Calibration, ExportRecipe, Thresholds
from pocketvlm.toolchain.torch_ops import EagerCache

from .tiny_bluelm_v import IMAGE, TinyBlueLMV

GRIDS = [(1, 1), (1, 2), (2, 1), (3, 1), (1, 3), (2, 2), (3, 2), (2, 3), (3, 3)]
# Model, part of the photograph, its grid by hand. Tiles of 40 pixels: 451x300 keep 120x79 in 3x2 as in 3x3, with less waste;
# 200x300 keep 80x120 in 2x3, 451x100 keep 120x26 in 3x1, and 36x30 are whole in one tile.
CASES: dict[str, tuple[dict[str, Any], tuple[int, int, int, int], tuple[int, int]]] = {
    "rows, newline, thumbnail first": ({"seed": 9}, (0, 0, 451, 300), (3, 2)),
    "rows, newline, thumbnail last": ({"thumbnail_first": False, "seed": 0}, (0, 0, 451, 300), (3, 2)),
    "rows, no newline": ({"newline": False, "seed": 1}, (100, 0, 300, 300), (2, 3)),
    "tile by tile, thumbnail first": ({"arrangement": "tile_by_tile", "newline": False, "seed": 7}, (0, 0, 451, 300), (3, 2)),
    "tile by tile, thumbnail last": (
        {"arrangement": "tile_by_tile", "newline": False, "thumbnail_first": False, "seed": 7},
        (0, 0, 451, 100),
        (3, 1),
    ),
    "even side, no bias": ({"side": 4, "bias": False, "seed": 4}, (0, 0, 451, 300), (3, 2)),
    "one tile": ({"seed": 4}, (200, 100, 236, 130), (1, 1)),
}
QUESTION = "What is in this picture?"
FP32 = ExportRecipe(precision="fp32")


def photograph(box: tuple[int, int, int, int]) -> Image.Image:
    return Image.fromarray(skimage.data.chelsea()).crop(box)


def asked(*images: object) -> list[dict[str, Any]]:
    shown = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": QUESTION}]}]


def flat(tokens: PromptTokens) -> list[int]:
    return [token for part in tokens.parts for token in (part if isinstance(part, tuple) else (IMAGE,))]


@pytest.mark.parametrize("name", CASES)
def test_eager_model_and_bundle_equal_the_assembly(name: str, tmp_path: Path) -> None:
    options, box, grid = CASES[name]
    model = TinyBlueLMV(**options)
    picture = photograph(box)
    pixels = model.pixels(picture, grid)
    visual = model.image_tokens(pixels, grid)
    messages = asked(picture)
    expected, lead = model.answer(messages, [visual], 24)
    # The seeds were chosen to have no near ties, and answers that depend on the order of the visual tokens.
    assert lead > 0.01
    assert len(set(expected)) > 8
    assert model.answer(messages, [visual.roll(1, 0)], 24)[0] != expected

    with Checkpoint.open(str(model.save(tmp_path / "checkpoint", GRIDS))) as checkpoint:
        prepared = prepare(checkpoint, FP32)
        eager = EagerModel(prepared.spec, prepared.weights)
        picture.save(tmp_path / "picture.png")
        plan, mine, tokens = encode_image(eager, tmp_path / "picture.png")
        assert (plan.grid, plan.tiles, plan.thumbnail) == (grid, grid[0] * grid[1], grid != (1, 1))
        if not model.thumbnail_first:
            pixels = pixels.roll(-1, 0)
        torch.testing.assert_close(mine, pixels, rtol=0, atol=0)
        torch.testing.assert_close(tokens, visual, rtol=1e-4, atol=1e-5)
        prompt = prepared.builder.encode(messages)
        text = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert flat(prompt) == model.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert eager.generate(splice(eager.embed, prompt, [tokens]), 24, chunk_size=50) == expected
        export_checkpoint(checkpoint, tmp_path / "bundle", FP32, SilentProgress())
    with VlmSession.open(tmp_path / "bundle", threads=1) as session:
        stream = session.chat(messages, max_new_tokens=24)
        answer = "".join(stream)
        assert list(stream.token_ids) == expected
        assert [item.image_tokens for item in stream.tile_plans] == [len(visual)]
    assert answer == model.tokenizer.decode(expected, skip_special_tokens=True)


def test_a_task_is_judged_by_the_answers_text(tmp_path: Path) -> None:
    """Two questions: one with the assembly's own answer, one with another. Half of them are right, on both sides."""
    model = TinyBlueLMV(seed=9)
    picture = photograph((0, 0, 451, 300))
    expected, lead = model.answer(asked(picture), [model.image_tokens(model.pixels(picture, (3, 2)), (3, 2))], 24)
    assert lead > 0.01
    end = next(number for number in range(4, 24) if expected[number] not in expected[:number])
    right = model.tokenizer.decode(expected[:end], skip_special_tokens=True)
    directory = model.save(tmp_path / "checkpoint", GRIDS)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": expected[end]}))
    picture.save(tmp_path / "picture.png")
    questions = [[QUESTION, f" {right}\n"], [QUESTION, right + "!"]]
    (tmp_path / "task.json").write_text(json.dumps({"picture.png": questions}))
    recipe = replace(FP32, task=str(tmp_path / "task.json"))
    with Checkpoint.open(str(directory)) as checkpoint:
        report = export_checkpoint(checkpoint, tmp_path / "bundle", recipe, SilentProgress())
        assert report.quality["ort-cpu"].task == TaskQuality(2, 0.5, 0.5)
        with pytest.raises(GateError, match=r"task accuracy 0\.500 < 0\.6"):
            export_checkpoint(checkpoint, tmp_path / "new", replace(recipe, thresholds=Thresholds(task=0.6)), SilentProgress())
    assert json.loads((tmp_path / "bundle/report.json").read_text())["variants"]["ort-cpu"]["task"]["accuracy"] == 0.5


def test_whoever_knows_the_vocabulary_may_calibrate_on_any_script(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Съешь же ещё этих мягких французских булок. " * 200, encoding="utf-8")
    doubtful = replace(FP32, calibration=Calibration(text=str(tmp_path / "text.txt")))
    sure = replace(doubtful, calibration=replace(doubtful.calibration, any_script=True))
    with Checkpoint.open(str(TinyBlueLMV().save(tmp_path / "checkpoint", [(1, 1)]))) as checkpoint:
        with pytest.raises(RecipeError, match=r"script that the model's vocabulary .*set calibration\.any_script: true"):
            export_checkpoint(checkpoint, tmp_path / "bundle", doubtful, SilentProgress())
        assert export_checkpoint(checkpoint, tmp_path / "bundle", sure, SilentProgress()).bundle.is_dir()


def test_conversation_about_two_photographs(tmp_path: Path) -> None:
    """System, two turns, two images of different grids, one after its question; more tokens than one chunk."""
    model = TinyBlueLMV(seed=4)
    first, second = photograph((0, 0, 451, 300)), photograph((100, 0, 300, 300))
    visual = [model.image_tokens(model.pixels(picture, grid), grid) for picture, grid in ((first, (3, 2)), (second, (2, 3)))]
    messages = [
        {"role": "system", "content": "Describe the image, please."},
        *asked(first),
        {"role": "assistant", "content": "The quick brown fox."},
        {"role": "user", "content": [{"type": "text", "text": "And this?"}, {"type": "image", "image": second}]},
    ]
    expected, lead = model.answer(messages, visual, 24)
    assert lead > 0.01
    with Checkpoint.open(str(model.save(tmp_path / "checkpoint", GRIDS))) as checkpoint:
        export_checkpoint(checkpoint, tmp_path / "bundle", FP32, SilentProgress())
    with VlmSession.open(tmp_path / "bundle", threads=1) as session:
        stream = session.chat(messages, max_new_tokens=24)
        for _ in stream:
            pass
        assert list(stream.token_ids) == expected
        assert stream.metrics.prompt_tokens > 128
        assert stream.metrics.tiles == 14


@pytest.mark.parametrize("side", [4, 5])
def test_eager_logits_equal_the_assembly(side: int, tmp_path: Path) -> None:
    model = TinyBlueLMV(side=side)
    ids = torch.randint(4, 300, (1, 60), generator=torch.Generator().manual_seed(2))
    pixels = torch.randn(3, 3, model.size, model.size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        reference = model.language_model(input_ids=ids).logits
    with Checkpoint.open(str(model.save(tmp_path / "checkpoint", GRIDS))) as checkpoint:
        prepared = prepare(checkpoint, FP32)
        eager = EagerModel(prepared.spec, prepared.weights)
        torch.testing.assert_close(eager.encode_tiles(pixels, batch=2), model.encode_tiles(pixels), rtol=1e-4, atol=1e-5)
        cache = EagerCache()
        parts = [eager.decode(eager.embed(part.tolist()), cache, all_positions=True) for part in ids[0].split([41, 1, 18])]
        torch.testing.assert_close(torch.cat(parts, 1), reference, rtol=1e-4, atol=1e-4)
        read: list[str] = []

        def weights(name: str) -> torch.Tensor:
            read.append(name)
            return prepared.weights(name)

        one_by_one, layer_by_layer = EagerCache(), EagerCache()
        embeddings = eager.embed(ids[0].tolist())
        for chunk in embeddings.split(7, 1):
            last = eager.decode(chunk, one_by_one)
        assert torch.equal(EagerModel(prepared.spec, weights).prefill(embeddings, layer_by_layer, 7), last)
        assert len(read) == len(set(read))
        for one, other in zip(one_by_one.keys + one_by_one.values, layer_by_layer.keys + layer_by_layer.values, strict=True):
            assert one is not None
            assert other is not None
            assert torch.equal(one, other)
