"""LLaVA against transformers' own processor and model: prompt tokens, pixels, features, logits, greedy tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import skimage.data
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from pocketvlm.errors import CheckpointError
from pocketvlm.runtime import VlmSession
from pocketvlm.toolchain.checkpoint import Checkpoint
from pocketvlm.toolchain.export import export_checkpoint
from pocketvlm.toolchain.model import EagerModel
from pocketvlm.toolchain.prepare import prepare
from pocketvlm.toolchain.progress import SilentProgress
from pocketvlm.toolchain.quantize.calibration import encode_image
from pocketvlm.toolchain.recipe import ExportRecipe, load_recipe
from pocketvlm.toolchain.torch_ops import EagerCache

from .conftest import save_llava

CASES = [
    {"tower": "clip", "feature_layer": -2, "strategy": "default"},
    {"tower": "clip", "feature_layer": -1, "strategy": "full", "bias": False},
    {"tower": "clip", "feature_layer": [-1, -3], "strategy": "default", "tied": True},
    {"tower": "siglip", "feature_layer": -1, "strategy": "full"},
    {"tower": "siglip", "feature_layer": 2, "strategy": "default", "tied": True, "seed": 3},
    {"tower": "siglip", "feature_layer": [1, -1], "strategy": "full", "bias": False},
]
IDS = ["-".join(str(value) for value in case.values()) for case in CASES]
# The original length is far below the 60 positions of the test, so that every band of frequencies is scaled.
ROPES = {
    "theta": {"seed": 5, "rope": {"rope_type": "default", "rope_theta": 500000.0}},
    "linear": {"seed": 7, "rope": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "llama3": {"seed": 3, "rope": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }},
}  # fmt: skip


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "chelsea.png"
    Image.fromarray(skimage.data.chelsea()).save(path)
    return path


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_bundle_answers_as_transformers(case: dict[str, object], photograph: Path, tmp_path: Path) -> None:
    model, processor = save_llava(tmp_path / "checkpoint", **case)  # type: ignore[arg-type]
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in this picture?"}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=prompt, images=Image.open(photograph), return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=24, do_sample=False, output_logits=True, return_dict_in_generate=True)
    generated = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    best = torch.stack(output.logits)[:, 0].topk(2).values
    # Pixels may differ by 1/255 (PIL and torchvision round differently); the seeds were chosen to have no near ties.
    assert (best[:, 0] - best[:, 1]).min() > 0.01
    expected = generated[: generated.index(1)] if 1 in generated else generated

    with Checkpoint.open(str(tmp_path / "checkpoint")) as checkpoint:
        prepared = prepare(checkpoint, ExportRecipe(precision="fp32"))
        eager = EagerModel(prepared.spec, prepared.weights)
        plan, pixels, _ = encode_image(eager, photograph)
        assert np.abs(pixels.numpy() - inputs["pixel_values"].numpy()).max() * min(prepared.spec.image.std) <= 1 / 255 + 1e-6
        mine = prepared.builder.encode(messages)
        ids: list[int] = []
        for part in mine.parts:
            ids += part if isinstance(part, tuple) else [prepared.tokenizer.image_token_id] * plan.image_tokens
        assert ids == inputs["input_ids"][0].tolist()
        export_checkpoint(checkpoint, tmp_path / "bundle", ExportRecipe(precision="fp32"), SilentProgress())
    with VlmSession.open(tmp_path / "bundle") as session:
        content = [{"type": "image", "image": str(photograph)}, {"type": "text", "text": "What is in this picture?"}]
        stream = session.chat([{"role": "user", "content": content}], max_new_tokens=24)
        text = "".join(stream)
        assert list(stream.token_ids) == expected
    assert text == processor.tokenizer.decode(expected, skip_special_tokens=True)
    # A tied table is stored once: both graphs of the language model name the same bytes.
    tables = set()
    for name in ("embed_tokens", "decoder"):
        graph = onnx.load(tmp_path / f"bundle/ort-cpu/{name}.onnx", load_external_data=False).graph
        for tensor in graph.initializer:
            if sorted(tensor.dims) == sorted((prepared.spec.decoder.vocab_size, prepared.spec.decoder.hidden_size)):
                tables.add(tuple((item.key, item.value) for item in tensor.external_data))
    assert len(tables) == (1 if case.get("tied") else 2)


@pytest.mark.parametrize("stored", [True, False], ids=["own head", "no head"])
@pytest.mark.parametrize("in_text", [None, False, True])
@pytest.mark.parametrize("on_top", [None, False, True])
def test_ties_what_transformers_ties(on_top: bool | None, in_text: bool | None, stored: bool, tmp_path: Path) -> None:
    """Either config may ask for it; an output projection with other values is kept all the same."""
    save_llava(tmp_path, tower="siglip")
    config = json.loads((tmp_path / "config.json").read_text())
    for section, value in ((config, on_top), (config["text_config"], in_text)):
        section.pop("tie_word_embeddings", None)
        if value is not None:
            section["tie_word_embeddings"] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    if not stored:
        tensors = load_file(tmp_path / "model.safetensors")
        save_file({k: v for k, v in tensors.items() if "lm_head" not in k}, tmp_path / "model.safetensors", {"format": "pt"})
    if not stored and not on_top and not in_text:
        # transformers makes one up, with a warning.
        with Checkpoint.open(str(tmp_path)) as checkpoint, pytest.raises(CheckpointError, match="lacks 1 tensor"):
            prepare(checkpoint, ExportRecipe(precision="fp32"))
        return
    ids = list(range(5, 30))
    with Checkpoint.open(str(tmp_path)) as checkpoint:
        prepared = prepare(checkpoint, ExportRecipe(precision="fp32"))
        assert prepared.spec.decoder.tie_embeddings is not stored
        eager = EagerModel(prepared.spec, prepared.weights)
        mine = eager.decode(eager.embed(ids), EagerCache(), all_positions=True)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.inference_mode():
        torch.testing.assert_close(mine, model(input_ids=torch.tensor([ids])).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_eager_equals_transformers(case: dict[str, object], tmp_path: Path) -> None:
    model, _ = save_llava(tmp_path / "checkpoint", **case)  # type: ignore[arg-type]
    pixels = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    ids = torch.randint(3, 300, (1, 60), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        features = model.model.get_image_features(pixel_values=pixels)
        features = getattr(features, "pooler_output", features)
        reference = model(input_ids=ids).logits
    with Checkpoint.open(str(tmp_path / "checkpoint")) as checkpoint:
        prepared = prepare(checkpoint, ExportRecipe(precision="fp32"))
        eager = EagerModel(prepared.spec, prepared.weights)
        stacked = features if isinstance(features, torch.Tensor) else torch.stack(list(features))
        torch.testing.assert_close(eager.encode_tiles(pixels), stacked.reshape(3, -1, 64), rtol=1e-4, atol=1e-4)
        cache = EagerCache()
        parts = [
            eager.decode(eager.embed(part), cache, all_positions=True) for part in (ids[0, :41].tolist(), [ids[0, 41].item()])
        ]
        parts.append(eager.decode(eager.embed(ids[0, 42:].tolist()), cache, all_positions=True))
        torch.testing.assert_close(torch.cat(parts, 1), reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ROPES)
def test_rope_scaling_equals_transformers(name: str, photograph: Path, tmp_path: Path) -> None:
    test_eager_equals_transformers(ROPES[name], tmp_path)
    test_bundle_answers_as_transformers(ROPES[name], photograph, tmp_path / "whole")


def test_the_nested_image_processor_comes_first(photograph: Path, tmp_path: Path) -> None:
    """A directory that transformers 5 has saved anew beside an older preprocessor_config.json."""
    save_llava(tmp_path / "checkpoint")
    older = {"image_processor_type": "CLIPImageProcessor", "image_mean": [0.9, 0.1, 0.2], "image_std": [0.3, 0.4, 0.5]}
    (tmp_path / "checkpoint/preprocessor_config.json").write_text(json.dumps(older | {"size": 56, "crop_size": 56}))
    processor = LlavaProcessor.from_pretrained(tmp_path / "checkpoint")
    expected = processor(text="<image>", images=Image.open(photograph), return_tensors="pt")["pixel_values"].numpy()
    with Checkpoint.open(str(tmp_path / "checkpoint")) as checkpoint:
        prepared = prepare(checkpoint, ExportRecipe(precision="fp32"))
        pixels = encode_image(EagerModel(prepared.spec, prepared.weights), photograph)[1].numpy()
    assert np.abs(pixels - expected).max() * min(prepared.spec.image.std) <= 1 / 255 + 1e-6


def test_the_repetition_penalty_of_the_checkpoint_is_used(photograph: Path, tmp_path: Path) -> None:
    """transformers' generate applies it to greedy answers, too."""
    model, processor = save_llava(tmp_path / "checkpoint")
    model.generation_config.repetition_penalty = 1.3
    model.save_pretrained(tmp_path / "checkpoint")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in this picture?"}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=prompt, images=Image.open(photograph), return_tensors="pt")
    with torch.inference_mode():
        penalised = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
        plain = model.generate(**inputs, max_new_tokens=24, do_sample=False, repetition_penalty=1.0)
    assert penalised != plain[0, inputs["input_ids"].shape[1] :].tolist()
    expected = penalised[: penalised.index(1)] if 1 in penalised else penalised
    with Checkpoint.open(str(tmp_path / "checkpoint")) as checkpoint:
        export_checkpoint(checkpoint, tmp_path / "bundle", ExportRecipe(precision="fp32"), SilentProgress())
    with VlmSession.open(tmp_path / "bundle") as session:
        content = [{"type": "image", "image": str(photograph)}, {"type": "text", "text": "What is in this picture?"}]
        stream = session.chat([{"role": "user", "content": content}], max_new_tokens=24)
        list(stream)
    assert list(stream.token_ids) == expected


def test_paper_precision_stays_close(photograph: Path, tmp_path: Path, recipe_file: Path) -> None:
    save_llava(tmp_path / "checkpoint", tower="siglip", feature_layer=-1, strategy="full")
    with Checkpoint.open(str(tmp_path / "checkpoint")) as checkpoint:
        report = export_checkpoint(checkpoint, tmp_path / "bundle", load_recipe(recipe_file), SilentProgress())
    quality = report.quality["ort-cpu"]
    assert quality.stages["vision_encoder"].cosine > 0.995
    assert quality.stages["connector"].cosine > 0.995
    assert quality.stages["prefill"].cosine > 0.9
    kernels = report.manifest.variants[0].stages["prefill"].kernels
    assert kernels["MatMulNBits"] == 4 * 3 + 1
    assert report.manifest.variants[0].stages["decode"].kernels["GroupQueryAttention"] == 3
    assert report.manifest.variants[0].stages["vision_encoder"].kernels["DynamicQuantizeMatMul"] == 4 * 4
    assert "MatMul" not in report.manifest.variants[0].stages["decode"].kernels
