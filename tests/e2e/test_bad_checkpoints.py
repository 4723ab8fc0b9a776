"""Every checkpoint that cannot be exported: one line, the documented exit code, and the old bundle as it was."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from .conftest import Call, contents

Damage = Callable[[Path], None]
Tensors = dict[str, torch.Tensor]
UP = "language_model.model.layers.1.mlp.up_proj.weight"


def remove(name: str) -> Damage:
    return lambda directory: (directory / name).unlink()


def write(name: str, content: str | bytes) -> Damage:
    data = content.encode() if isinstance(content, str) else content
    return lambda directory: (directory / name).write_bytes(data) and None


def cut(name: str, size: int) -> Damage:
    return lambda directory: (directory / name).write_bytes((directory / name).read_bytes()[:size]) and None


def flip(name: str, place: int, bit: int) -> Damage:
    def damage(directory: Path) -> None:
        content = bytearray((directory / name).read_bytes())
        content[place] ^= 1 << bit
        (directory / name).write_bytes(content)

    return damage


def change(name: str, path: str, value: Any) -> Damage:
    """Set "a.b.c" of a JSON file; `...` deletes it."""

    def damage(directory: Path) -> None:
        raw = json.loads((directory / name).read_text())
        *parents, last = path.split(".")
        place = raw
        for key in parents:
            place = place[key]
        place[last] = value
        if value is ...:
            del place[last]
        (directory / name).write_text(json.dumps(raw))

    return damage


def config(path: str, value: Any) -> Damage:
    return change("config.json", path, value)


def tensors(edit: Callable[[Tensors], object]) -> Damage:
    def damage(directory: Path) -> None:
        found = load_file(directory / "model.safetensors")
        edit(found)
        save_file(found, str(directory / "model.safetensors"))

    return damage


def pickled(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    torch.save({}, directory / "pytorch_model.bin")


def without_image_token(directory: Path) -> None:
    path = directory / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] != "<image>"]
    path.write_text(json.dumps(raw))


def foreign_tokenizer(directory: Path) -> None:
    """Of another model, with more tokens than the embedding table has rows."""
    path = directory / "tokenizer.json"
    raw = json.loads(path.read_text())
    vocabulary = raw["model"]["vocab"]
    for number in range(9):
        vocabulary[f"zz{number}"] = len(vocabulary)
    path.write_text(json.dumps(raw))


def template(text: str) -> Damage:
    return write("chat_template.jinja", text)


def same(values: Tensors, name: str, value: torch.Tensor) -> None:
    values[name] = value


# What is done to the checkpoint, what the line says, and whether `inspect`, which reads no weights, refuses it, too.
CASES: dict[str, tuple[Damage, str, bool]] = {
    "no config": (remove("config.json"), r"tiny: no config\.json.*save_pretrained", True),
    "config cut short": (cut("config.json", 300), r"config\.json: not valid JSON", True),
    "config of another kind": (write("config.json", "[]"), r"config\.json: not a JSON object", True),
    "config that is binary": (write("config.json", b"\xff\xfe"), r"config\.json: not UTF-8", True),
    "config nested too deeply": (write("config.json", "[" * 100_000), r"config\.json: not valid JSON", True),
    "no weights": (remove("model.safetensors"), r"tiny: no model\.safetensors", True),
    "pickled weights": (pickled, r"only pickled weights \(pytorch_model\.bin\).*save_pretrained", True),
    "weights cut in the header": (cut("model.safetensors", 5000), r"model\.safetensors: damaged.*download it again", True),
    "weights cut in the data": (cut("model.safetensors", 50_000), r"model\.safetensors: damaged.*download it again", True),
    "flipped bit in the header's length": (flip("model.safetensors", 2, 6), r"model\.safetensors: damaged.*header", True),
    "flipped bit in the header": (flip("model.safetensors", 500, 6), r"model\.safetensors: damaged.*header", True),
    "no tokenizer": (remove("tokenizer.json"), r"no tokenizer\.json", True),
    "tokenizer cut short": (cut("tokenizer.json", 3000), r"tokenizer\.json: not valid JSON", True),
    "tokenizer that is none": (write("tokenizer.json", "{}"), r"tokenizer\.json: not a tokenizer", True),
    "no image token": (without_image_token, r"tokenizer\.json has no added token '<image>'.*add", False),
    "image token of another id": (config("image_token_id", 10**12), r"no token with id 10{12}", True),
    "tokenizer of another model": (
        foreign_tokenizer,
        r"tokenizer\.json has a token \d+, the model's vocabulary only \d+",
        False,
    ),
    "no template": (remove("chat_template.jinja"), "no chat template.*chat_template.jinja", False),
    "no image processor": (remove("preprocessor_config.json"), "no image processor settings", True),
    "architecture nearly known": (config("model_type", "bluelm-v"), r"'bluelm-v' \(did you mean bluelm_v", True),
    "architecture unknown": (config("model_type", "gpt2"), r"'gpt2' \(known: bluelm_v, llava", True),
    "no architecture": (config("model_type", ...), "no model_type", True),
    "decoder nearly known": (config("text_config.model_type", "lama"), r"decoder 'lama' \(did you mean llama", True),
    "tower unknown": (config("vision_config.model_type", "dino"), "vision tower 'dino'.*siglip_vision_model", True),
    "misspelt key": (config("projector_config.hidden_siz", 3), r"unknown key 'hidden_siz' \(did you mean 'hidden_size'", True),
    "missing tensor": (tensors(lambda all_: all_.pop(UP)), rf"lacks 1 tensor\(s\): {re.escape(UP)}", True),
    "surplus tensor": (tensors(lambda all_: same(all_, "extra.weight", torch.ones(3))), r"1 tensor\(s\).*extra\.weight", True),
    "surplus layer": (
        tensors(lambda all_: same(all_, UP.replace(".1.", ".3."), all_[UP].clone())),
        r"1 tensor\(s\).*layers\.3\.mlp\.up_proj",
        True,
    ),
    "wrong shape": (tensors(lambda all_: same(all_, UP, torch.ones(96, 63))), r"has shape \[96, 63\].*\[96, 64\]", True),
    "transposed": (tensors(lambda all_: same(all_, UP, all_[UP].T.contiguous())), r"has shape \[64, 96\]", True),
    "NaN": (tensors(lambda all_: all_[UP][3].fill_(torch.nan)), rf"tensor '{UP}' holds NaN or infinity.*damaged", False),
    "infinity": (tensors(lambda all_: all_["image_newline"].fill_(torch.inf)), "'image_newline' holds NaN or inf", False),
    "quantized weights": (tensors(lambda all_: same(all_, UP, all_[UP].to(torch.int8))), "type I8.*unquantized", False),
    "newline without rows": (config("image_tokens_config.arrangement", "tile_by_tile"), "newline.*picture_rows", True),
    "half the grids missing": (config("tiling_config.grids", []), "0 candidate grids", True),
    "grid larger than memory": (config("tiling_config.grids", [[10**6, 10**6]]), "grid 1000000x1000000", True),
    "images larger than the context": (
        config("tiling_config.grids", [[50, 50]]),
        r"an image of the calibration or the task, .* take \d+ positions, the model has 512",
        False,
    ),
    "endless template": (
        template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
        "chat template does not finish within",
        False,
    ),
    "template that writes and writes": (
        template("{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}"),
        "chat template writes more than",
        False,
    ),
    "template that reaches out": (
        template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        "chat template.*sandbox forbids.*__class__",
        False,
    ),
    "sampling default out of range": (
        lambda directory: write("generation_config.json", json.dumps({"do_sample": True, "top_p": -1}))(directory),
        r"generation_config\.json: top_p is -1",
        False,
    ),
    "sampling default that is no number": (
        write("generation_config.json", json.dumps({"do_sample": True, "temperature": "hot"})),
        r"generation_config\.json\.temperature: expected float",
        False,
    ),
    "end of the answer outside the vocabulary": (
        write("generation_config.json", json.dumps({"eos_token_id": 10**6})),
        "eos_token_id 1000000 is outside the vocabulary",
        True,
    ),
}


@pytest.fixture(scope="module")
def old(exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle where the export is to go. Whatever fails leaves it, and nothing beside it."""
    return shutil.copytree(exported("paper"), tmp_path_factory.mktemp("output") / "bundle")


def refuse(call: Call, checkpoint: Path, recipe: Path, old: Path, pattern: str, *options: object, code: int = 3) -> None:
    """Neither the old bundle nor a new output changes."""
    before = contents(old.parent)
    call("export", checkpoint, "-o", old, "-c", recipe, *options).failed(code, pattern)
    assert contents(old.parent) == before
    assert [path.name for path in old.parent.iterdir()] == [old.name]


@pytest.mark.parametrize("name", CASES)
def test_bad_checkpoint(name: str, checkpoint: Path, recipe: Path, old: Path, call: Call) -> None:
    damage, pattern, also_inspect = CASES[name]
    damage(checkpoint)
    refuse(call, checkpoint, recipe, old, pattern)
    inspected = call("inspect", checkpoint, "--json")
    if not also_inspect:
        assert inspected.code == 0
        return
    inspected.failed(3, pattern)
    assert inspected.json["error"].keys() == {"code", "message", "hint"}
    assert inspected.json["error"]["code"] == "bad_checkpoint"
    assert inspected.json["error"]["message"] in inspected.err


SIZES = [
    "text_config.hidden_size",
    "text_config.num_hidden_layers",
    "text_config.vocab_size",
    "text_config.num_attention_heads",
    "text_config.num_key_value_heads",
    "text_config.head_dim",
    "text_config.intermediate_size",
    "text_config.max_position_embeddings",
    "vision_config.hidden_size",
    "vision_config.num_hidden_layers",
    "vision_config.num_attention_heads",
    "vision_config.intermediate_size",
    "vision_config.image_size",
    "vision_config.patch_size",
    "vision_config.num_channels",
    "projector_config.hidden_size",
    "projector_config.downsample",
]
ABSURD = [10**12, -5, 0, "big", [[1]], 1e308, float("nan"), {}]


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("path", SIZES)
def test_absurd_sizes(path: str, checkpoint: Path, recipe: Path, old: Path, call: Call) -> None:
    """Numbers that no model has, and values that are no numbers: refused before anything of that size is made."""
    original = (checkpoint / "config.json").read_text()
    for value in ABSURD:
        (checkpoint / "config.json").write_text(original)
        config(path, value)(checkpoint)
        refuse(call, checkpoint, recipe, old, "config")


ROPE = [
    {"rope_type": "linear", "rope_theta": 10000.0},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": "big"},
    {"rope_type": "linear", "rope_theta": None, "factor": 2.0},
    {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0},
    *(
        {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": low, "high_freq_factor": high,
         "original_max_position_embeddings": original}
        for low, high, original in ((0, 4.0, 64), (1.0, 0, 64), (4.0, 1.0, 64), (1.0, 1.0, 64), (1.0, 4.0, 0), (1.0, 4.0, "x"))
    ),
]  # fmt: skip
VALUES = {
    "text_config.rms_norm_eps": [float("nan"), 1e308, -1.0, "small"],
    "vision_config.layer_norm_eps": [float("nan"), 1e308, -1.0, []],
    "text_config.rope_parameters": [7, [1], {"rope_type": "default", "rope_theta": -1.0}, {"rope_type": "yarn"}, *ROPE],
    "text_config.hidden_act": ["tanhshrink", 5, None],
    "vision_config.hidden_act": ["tanhshrink", 5, None],
    "projector_config.hidden_act": ["tanhshrink", 5, None],
    "tiling_config.grids": [[[0, 1]], [[-1, 1]], [[1, 1], [1, 1]], [[1, 1]] * 2000, [[1, 1, 1]], [["a", 1]], 5],
    "tiling_config.alpha": [-1, float("nan"), 1e308, "much"],
    "tiling_config.policy": ["best", None],
    "image_tokens_config.newline": [1, "yes", None],
}
PROCESSOR = {
    "image_mean": [None, 0.5, [0.5], ["a"] * 3, [float("nan")] * 3, [10**400] * 3],
    "image_std": [None, [0, 0, 0], [-1, 1, 1], [True] * 3, [float("inf")] * 3],
    "rescale_factor": [None, "1/255", [1], 0, -1, float("nan")],
    "resample": ["bicubic", 77, [3], {}],
    "do_rescale": [False, "no", None],
    "do_normalize": [False, 0],
    "do_resize": [False, None],
}


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("path", [*VALUES, *PROCESSOR])
def test_values_without_sense(path: str, checkpoint: Path, recipe: Path, old: Path, call: Call) -> None:
    name = "config.json" if path in VALUES else "preprocessor_config.json"
    original = (checkpoint / name).read_text()
    for value in VALUES.get(path, []) + PROCESSOR.get(path, []):
        (checkpoint / name).write_text(original)
        change(name, path, value)(checkpoint)
        refuse(call, checkpoint, recipe, old, "config|tiling|image processor")


def test_what_is_no_checkpoint_at_all(pristine: Path, recipe: Path, old: Path, tmp_path: Path, call: Call) -> None:
    refuse(call, tmp_path / "no/where", recipe, old, "no/where: no such file or directory")
    refuse(call, pristine / "config.json", recipe, old, r"config\.json: not a directory")
    (tmp_path / "empty").mkdir()
    refuse(call, tmp_path / "empty", recipe, old, r"empty: no config\.json, so this is not a checkpoint")
    refuse(call, pristine, recipe, old, "has no revision.*leave out", "--revision", "main", code=2)
    refuse(call, "x" * 300, recipe, old, "File name too long", code=5)


def test_weights_that_overflow_fail_the_gate(checkpoint: Path, recipe: Path, old: Path, call: Call, tmp_path: Path) -> None:
    """Finite, so no reader can object; but nothing comes out that could be compared, or calibrated on."""
    tensors(lambda all_: all_[UP].fill_(3e38))(checkpoint)
    refuse(call, checkpoint, recipe, old, "GPTQ: .*its activations overflow.*method to rtn", code=3)
    rounded = tmp_path / "rounded.yaml"
    rounded.write_text(json.dumps({**json.loads(recipe.read_text()), "decoder_weights": {"method": "rtn"}}))
    refuse(call, checkpoint, rounded, old, "differs too much from the checkpoint.*nan", code=4)
