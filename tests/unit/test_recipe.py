"""The recipe reader: what it takes, and that it takes nothing else."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pocketvlm.errors import RecipeError, UsageError
from pocketvlm.runtime.manifest import TilingSpec
from pocketvlm.toolchain.recipe import (
    Calibration,
    DecoderWeights,
    ExportRecipe,
    KvCache,
    OrtCpu,
    Qnn,
    Thresholds,
    idle_settings,
    load_recipe,
)
from pocketvlm.toolchain.registry import Registry

ROOT = Path(__file__).parents[2]
EVERYTHING = """
targets: ["qnn:SM8650", ort-cpu]
precision: fp32
max_seq_len: 512
chunk_size: 64
vision_batch: 2
fixed_vision_batch: true
decoder_weights: {method: gptq, block_size: 64, symmetric: true}
prefill_weights: int8
lm_head_bits: 4
embedding_bits: 4
kv_cache: {dtype: float32, granularity: per_tensor}
ort_cpu: {arm_kernels: fastest}
qnn: {stages: [decoder], vision_batch: 2, vision_activations: float16, decoder_weights: per_channel, attention: split,
  layers_per_part: 4, memory_gb: 2.5, vtcm_mb: 4, proxy: true, weight_sharing: false, emulate: all}
calibration:
  images: [screens, ../photos/one.png, /data/two.png]
  prompts: questions.txt
  text: prose.txt
  tokens: 100
  any_script: true
thresholds: {stage_cosine: 0.5, logits_kl: 1, top1: 0.25, task: 0.75}
task: questions.json
tiling: {policy: llava_next, grids: [[1, 2], [2, 1]], thumbnail: never, alpha: 0.2}
"""


def load(tmp_path: Path, text: str) -> ExportRecipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path)


def test_an_empty_recipe_is_the_default(tmp_path: Path) -> None:
    assert load(tmp_path, "# nothing\n") == ExportRecipe()


def test_every_field_is_read(tmp_path: Path) -> None:
    recipe = load(tmp_path, EVERYTHING)
    tiling = recipe.tiling
    assert tiling is not None
    assert replace(recipe, tiling=None) == ExportRecipe(
        ("qnn:SM8650", "ort-cpu"),
        "fp32",
        512,
        64,
        2,
        True,
        DecoderWeights("gptq", 64, True),
        "int8",
        4,
        4,
        KvCache("float32", "per_tensor"),
        OrtCpu("fastest"),
        Qnn(("decoder",), 2, "float16", "per_channel", "split", 4, 2.5, 4, True, False, "all"),
        Calibration(
            (str(tmp_path / "screens"), str(tmp_path / "../photos/one.png"), "/data/two.png"),
            str(tmp_path / "questions.txt"),
            str(tmp_path / "prose.txt"),
            100,
            True,
        ),
        Thresholds(0.5, 1.0, 0.25, 0.75),
        str(tmp_path / "questions.json"),
    )
    base = TilingSpec("single", 384, ((1, 1),), "always", fit="crop")
    assert tiling.apply(base) == TilingSpec("llava_next", 384, ((1, 2), (2, 1)), "never", 0.2, "crop")
    partly = load(tmp_path, "tiling: {alpha: 0}").tiling
    assert partly is not None
    assert partly.apply(base) == replace(base, alpha=0.0)


def test_prompts_may_be_a_file_beside_the_recipe_or_a_list(tmp_path: Path) -> None:
    assert load(tmp_path, "calibration: {prompts: q.txt}").calibration.prompts == str(tmp_path / "q.txt")
    assert load(tmp_path, "calibration: {prompts: [What is it?]}").calibration.prompts == ("What is it?",)


def test_targets_for_a_file_that_names_none(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for text, wanted in (("chunk_size: 64", "qnn:SM8750"), ("targets: [ort-cpu]", "ort-cpu")):
        path.write_text(text)
        assert load_recipe(path, ("qnn:SM8750",)).targets == (wanted,)


@pytest.mark.parametrize("text", ["chunk_sise: 3", "targets: [ort-gpu]", "chunk_size: 0", "a: [", None])
def test_a_file_is_named_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("recipes/my.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"^recipes/my\.yaml[:,] "):
        load_recipe(Path("recipes/my.yaml"))


def test_arm_kernels_are_one_of_two(tmp_path: Path) -> None:
    assert load(tmp_path, "chunk_size: 64").ort_cpu.arm_kernels == "faithful"
    assert load(tmp_path, "ort_cpu: {arm_kernels: fastest}").ort_cpu.arm_kernels == "fastest"
    with pytest.raises(RecipeError, match="'faithful', 'fastest'"):
        load(tmp_path, "ort_cpu: {arm_kernels: fast}")


def test_settings_of_the_npu_are_idle_without_one() -> None:
    changed = ExportRecipe(qnn=Qnn(vision_batch=2, emulate="all"))
    assert idle_settings(changed) == ["qnn.vision_batch", "qnn.emulate"]
    assert idle_settings(ExportRecipe()) == []
    assert idle_settings(replace(changed, targets=("ort-cpu", "qnn:SM8750"))) == []


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("chunk_sise: 3", "recipe.yaml: unknown key 'chunk_sise'", "did you mean 'chunk_size'?"),
        ("kv_cache: {dtyp: int8}", "recipe.yaml.kv_cache: unknown key 'dtyp'", "did you mean 'dtype'?"),
        ("targets: [ort-gpu]", "recipe.yaml: unknown target 'ort-gpu'", "did you mean ort-cpu?"),
        ("targets: []", "recipe.yaml: targets [] must be", ""),
        ("targets: [ort-cpu, ort-cpu]", "each once", ""),
        ("targets: ort-cpu", "expected a list", ""),
        ("precision: fp16", "'fp16' is none of 'paper', 'fp32'", ""),
        ("chunk_size: 0", "chunk_size is 0, not between 1 and", ""),
        ("chunk_size: 1.5", "expected int", ""),
        ("chunk_size: true", "expected int", ""),
        ("chunk_size: '128'", "expected int", ""),
        ("max_seq_len: 99999999999", "max_seq_len", ""),
        ("vision_batch: -1", "vision_batch is -1", ""),
        ("lm_head_bits: 5", "5 is none of 8, 4", ""),
        ("decoder_weights: {block_size: 33}", "block_size is 33", "take 16"),
        ("thresholds: {top1: 1.5}", "thresholds.top1 is 1.5", ""),
        ("thresholds: {logits_kl: .nan}", "not a finite number", ""),
        ("tiling: {grids: [[0, 1]]}", "a side of tiling.grids is 0", ""),
        ("tiling: {grids: [[1, 1], [1, 1]]}", "each once", ""),
        ("tiling: {grids: []}", "1 to 1000", ""),
        ("chunk_size: 1\nchunk_size: 2", "line 2", ""),
        ("a: [", "not valid YAML", ""),
        ("!!python/object/apply:os.system [id]", "not valid YAML", ""),
        ("- 1", "expected an object", ""),
        ("[" * 100_000, "not valid YAML", ""),
        ("#" * 1_100_000, "larger than", ""),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text)
    assert message in caught.value.message
    assert "recipe.yaml" in caught.value.message
    assert hint in caught.value.hint
    assert "\n" not in str(caught.value)


def test_aliases_that_unfold_without_end_are_refused_at_once(tmp_path: Path) -> None:
    """ "Billion laughs": 400 bytes of YAML that spell out to gigabytes."""
    lines = ["chunk_size:", "  a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(RecipeError, match="chunk_size: expected int"):
        load_recipe(path)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(tmp_path / "binary.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(RecipeError, match="not a file"):
        load_recipe(tmp_path / "pipe.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "export_configs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_recipes_of_the_repository_are_valid_and_open_with_their_commands(path: Path) -> None:
    recipe = load_recipe(path)
    opening = path.read_text().partition("\n\n")[0]
    assert f"-c export_configs/{path.name}" in opening
    assert path.name.split(".")[-2] in {target.replace(":", "-") for target in recipe.targets}


def test_a_registry_imports_on_first_use_and_names_the_nearest() -> None:
    registry = Registry("thing", {"module": "json.tool", "attribute": "fractions:Fraction", "broken": "no.such.module"})
    assert registry.names() == ("module", "attribute", "broken")
    assert registry.load("attribute")(1, 2) == 0.5
    assert registry.load("module").__name__ == "json.tool"
    with pytest.raises(UsageError, match=r"unknown thing 'modul' \(did you mean module\?\)"):
        registry.load("modul")
    with pytest.raises(RecipeError, match=r"known: module, attribute, broken"):
        registry.load("zzz", RecipeError)
    with pytest.raises(ModuleNotFoundError):
        registry.load("broken")
