"""`pocketvlm tune`: settings ranked by the NPU compiler's own estimate."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.errors import EnvironmentFault, GateError, PocketVLMError, RecipeError, UsageError
from pocketvlm.toolchain.backends.base import Choice
from pocketvlm.toolchain.backends.qnn.simulated import Simulated, simulate
from pocketvlm.toolchain.backends.qnn.socs import SOCS, Soc
from pocketvlm.toolchain.backends.qnn.static_graph import StaticGraph
from pocketvlm.toolchain.backends.qnn.tune import Tuner
from pocketvlm.toolchain.checkpoint import Checkpoint
from pocketvlm.toolchain.commands.tune import recipe_text, tune
from pocketvlm.toolchain.prepare import Prepared, prepare
from pocketvlm.toolchain.progress import SilentProgress
from pocketvlm.toolchain.recipe import ExportRecipe, Qnn, load_recipe

from .tiny_bluelm_v import TinyBlueLMV


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyBlueLMV(positions=256).save(tmp_path_factory.mktemp("tune") / "checkpoint", [(1, 1), (1, 2)])


def test_the_recipe_holds_the_winners_and_tells_what_they_rest_on(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tmp_path / "start.yaml"
    start.write_text("decoder_weights: {method: rtn}\ncalibration: {text: generated, prompts: questions.txt, images: [a]}\n")
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
    # 3 tiles of 3x3 tokens, a newline behind each row of the two that are no thumbnail, and 64 tokens of question.
    prompt, answer = "97 positions of prompt", "64 tokens of answer"
    assert [choice["work"] for choice in choices.values()] == [
        "3 tiles; all layers",
        f"{prompt}; all layers",
        f"{prompt}, {answer}; all layers",
        f"3 tiles, {prompt}, {answer}; all layers",
    ]
    recipe = load_recipe(output)
    assert recipe.targets == ("qnn:SM8650",)
    assert str(recipe.qnn.vision_batch) == choices["qnn.vision_batch"]["winner"]
    assert str(recipe.chunk_size) == choices["chunk_size"]["winner"]
    assert recipe.qnn.attention == choices["qnn.attention"]["winner"]
    assert str(recipe.qnn.vtcm_mb) == choices["qnn.vtcm_mb"]["winner"]
    assert recipe.decoder_weights == load_recipe(start).decoder_weights
    assert recipe.calibration.text == "generated"
    assert Path(recipe.calibration.images[0]).resolve() == (tmp_path / "a").resolve()
    assert Path(str(recipe.calibration.prompts)).resolve() == (tmp_path / "questions.txt").resolve()
    opening = output.read_text().partition("\n\n")[0]
    assert opening.count("<- taken") == 4
    assert "never a phone's latency" in opening


def test_other_targets_of_the_recipe_stay(checkpoint: Path, tmp_path: Path, compiler: Compiler) -> None:
    start, output = tmp_path / "start.yaml", tmp_path / "tuned.yaml"
    start.write_text('targets: [ort-cpu, "qnn:SM8650"]\nqnn: {stages: [vision], vision_activations: float16}\n')
    tune(str(checkpoint), "qnn:SM8650", output, start, None, as_json=True)
    recipe = load_recipe(output)
    assert recipe.targets == ("ort-cpu", "qnn:SM8650")
    # Nothing of the decoder is estimated, and what is has the activations that it will have.
    assert {(name, half) for name, _, _, half in compiler.seen} == {("vision_encoder_1", True)}
    assert recipe.qnn == Qnn(("vision",), 4, "float16", vtcm_mb=2)


def test_a_sibling_makes_room_and_the_rest_stays(checkpoint: Path, tmp_path: Path, compiler: Compiler) -> None:
    start, output = tmp_path / "start.yaml", tmp_path / "tuned.yaml"
    start.write_text('targets: ["qnn:SM8750", ort-cpu]\nkv_cache: {granularity: per_channel}\n')
    tune(str(checkpoint), "qnn:SM8650", output, start, None, as_json=True)
    recipe = load_recipe(output)
    assert (recipe.targets, recipe.kv_cache.granularity) == (("qnn:SM8650", "ort-cpu"), "per_channel")


def test_its_own_recipe_is_overwritten_until_it_is_edited(checkpoint: Path, tmp_path: Path, compiler: Compiler) -> None:
    output = tmp_path / "tuned.yaml"
    link = tmp_path / "link.yaml"
    link.symlink_to(output)
    for target, place in (("qnn:SM8650", output), ("qnn:SM8750", output), ("qnn:SM8650", link)):
        tune(str(checkpoint), target, place, None, None, as_json=True)
        assert load_recipe(output).targets == (target,)
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.yaml", "tuned.yaml"]
    text, seen = output.read_text(), len(compiler.seen)
    for edited in (text.replace("qnn:SM8650", "qnn:SM8850"), text + "# mine\n", "\n".join(text.splitlines()[:-1]), ""):
        output.write_text(edited)
        with pytest.raises(UsageError, match=r"tuned\.yaml: exists and is not what pocketvlm tune wrote"):
            tune(str(checkpoint), "qnn:SM8750", output, None, None, as_json=True)
        assert output.read_text() == edited
    with pytest.raises(UsageError, match=r"exists and is not"):
        tune(str(checkpoint), "qnn:SM8750", tmp_path, None, None, as_json=True)
    assert len(compiler.seen) == seen


def test_what_has_come_meanwhile_is_not_overwritten(checkpoint: Path, tmp_path: Path, compiler: Compiler) -> None:
    def says(name: str, shape: tuple[int, ...], ops: str, memory: int) -> int:
        (tmp_path / "tuned.yaml").write_text("mine")
        return 1

    compiler.says = says
    with pytest.raises(UsageError, match="exists and is not"):
        tune(str(checkpoint), "qnn:SM8650", tmp_path / "tuned.yaml", None, None, as_json=True)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("place", "kind", "told"),
    [
        ("x" * 300, EnvironmentFault, "^x*: cannot be written: File name too long"),
        ("start.yaml/recipe.yaml", UsageError, r"^start\.yaml/recipe\.yaml: start\.yaml is a file, not a folder"),
        ("nowhere/recipe.yaml", UsageError, r"^nowhere/recipe\.yaml: there is no folder nowhere"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_the_checkpoint_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, kind: type[PocketVLMError], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("start.yaml").write_text("")
    with pytest.raises(kind, match=told):
        tune("no-such-checkpoint", "qnn:SM8650", Path(place), None, None, as_json=False)


def test_a_folder_that_takes_no_file_is_told_before_the_checkpoint_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(EnvironmentFault, match=r"recipe\.yaml: cannot be written: Permission denied"):
        tune("no-such-checkpoint", "qnn:SM8650", tmp_path / "recipe.yaml", None, None, as_json=False)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("qnn: {vtcm_mb: 9}", r"qnn\.vtcm_mb is 9, and SM8650 has 8 MB on chip"),
        ("qnn: {stages: [vision]}", r"qnn\.stages .* leaves the other half .*\(add ort-cpu to targets\)"),
        ("precision: fp32", r"precision is fp32, and target qnn:SM8650 has no float32 form"),
    ],
)
def test_a_recipe_that_the_npu_cannot_follow_is_named(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("start.yaml").write_text(text)
    with pytest.raises(RecipeError, match=rf"^start\.yaml: {told}"):
        tune(str(checkpoint), "qnn:SM8650", Path("tuned.yaml"), Path("start.yaml"), None, as_json=False)


@pytest.mark.parametrize(("target", "told"), [("ort-cpu", "no compiler"), ("qnn:SM8651", "did you mean qnn:SM8650")])
def test_targets_without_an_estimate(checkpoint: Path, tmp_path: Path, target: str, told: str) -> None:
    with pytest.raises(PocketVLMError) as error:
        tune(str(checkpoint), target, tmp_path / "recipe.yaml", None, None, as_json=False)
    assert told in str(error.value)
    assert not list(tmp_path.iterdir())


class Compiler:
    """Stands for the compiler: one microsecond a run, unless a test says otherwise.

    Attributes:
        says: microseconds of a graph, given its name, its first input's shape, its operators and the on-chip memory.
        seen: name, shape and operators, memory and whether activations are float16, of every graph.
    """

    def __init__(self) -> None:
        self.says: Callable[[str, tuple[int, ...], str, int], int] = lambda name, shape, ops, memory: 1
        self.seen: list[tuple[str, object, int, bool]] = []

    def simulate(self, graph: StaticGraph, soc: Any, folder: Path, memory_bytes: int, vtcm_mb: int, *, half: bool) -> Simulated:
        shape, ops = next(iter(graph.inputs.values())), " ".join(node.op for node in graph.nodes)
        self.seen.append((graph.name, (shape, ops), vtcm_mb, half))
        return Simulated(self.says(graph.name, shape, ops, vtcm_mb), 0)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    found = Compiler()
    monkeypatch.setattr("pocketvlm.toolchain.backends.qnn.tune.simulate", found.simulate)
    return found


class Steps(SilentProgress):
    """Counts."""

    def __init__(self) -> None:
        self.total = self.done = 0

    def stage(self, name: str, total: int) -> None:
        self.total += total

    def advance(self, n: int = 1) -> None:
        self.done += n


@pytest.fixture(scope="module")
def prepared(checkpoint: Path) -> Prepared:
    with Checkpoint.open(str(checkpoint)) as opened:
        found = prepare(opened, ExportRecipe())
        found.weights.keep_in_memory(1 << 40)
    return found


def tuned(
    prepared: Prepared, folder: Path, recipe: ExportRecipe | None = None, progress: SilentProgress | None = None
) -> tuple[ExportRecipe, dict[str, Choice]]:
    soc, progress = SOCS["SM8650"], progress or SilentProgress()
    recipe = recipe or ExportRecipe()
    found, choices = Tuner(soc, prepared.spec, prepared.weights, recipe, prepared.capacity, folder, progress).tune()
    return found, {choice.key: choice for choice in choices}


@pytest.mark.parametrize("qnn", [Qnn(), Qnn(vtcm_mb=4), Qnn(vtcm_mb=6), Qnn(("vision",)), Qnn(("decoder",))])
def test_no_graph_is_estimated_twice_and_every_step_is_counted(
    prepared: Prepared, tmp_path: Path, compiler: Compiler, qnn: Qnn
) -> None:
    steps = Steps()
    _, choices = tuned(prepared, tmp_path, replace(ExportRecipe(), qnn=qnn), steps)
    assert steps.done == steps.total == sum(len(choice.candidates) for choice in choices.values())
    assert len(set(compiler.seen)) == len(compiler.seen)
    assert len({item[3] for item in compiler.seen}) == 1


def test_attention_is_chosen_for_prompt_and_answer_together(prepared: Prepared, tmp_path: Path, compiler: Compiler) -> None:
    def says(name: str, shape: tuple[int, ...], ops: str, memory: int) -> int:
        split = ops.count("MatMul") > 9
        return (10 if split else 1) if shape[1] > 1 else (100 if split else 110)

    compiler.says = says
    recipe, choices = tuned(prepared, tmp_path)
    assert recipe.qnn.attention == choices["qnn.attention"].winner == "split"
    # Three layers: one chunk of all 97 positions, and 64 tokens.
    found = {item.value: item.milliseconds for item in choices["qnn.attention"].candidates}
    assert found == {"joined": pytest.approx(3 * (1 + 64 * 110) / 1000), "split": pytest.approx(3 * (10 + 64 * 100) / 1000)}


def test_memory_is_chosen_for_all_that_is_compiled(prepared: Prepared, tmp_path: Path, compiler: Compiler) -> None:
    def says(name: str, shape: tuple[int, ...], ops: str, memory: int) -> int:
        # The decoder would rather have little, but vision gains more by having all.
        return 100_000 // memory if name.startswith("vision") else memory

    compiler.says = says
    assert tuned(prepared, tmp_path)[0].qnn.vtcm_mb == 8
    assert tuned(prepared, tmp_path, replace(ExportRecipe(), qnn=Qnn(("decoder",))))[0].qnn.vtcm_mb == 2


def test_chunks_are_no_longer_than_the_cache(prepared: Prepared, tmp_path: Path, compiler: Compiler) -> None:
    for capacity, chunks in ((16, ["16"]), (64, ["32", "64"]), (256, ["32", "128", "256"])):
        _, choices = tuned(replace(prepared, capacity=capacity), tmp_path)
        assert [item.value for item in choices["chunk_size"].candidates] == chunks


def test_a_candidate_that_cannot_be_compiled_is_out_and_the_reason_is_kept(
    prepared: Prepared, tmp_path: Path, compiler: Compiler
) -> None:
    def says(name: str, shape: tuple[int, ...], ops: str, memory: int) -> int:
        if name.startswith("vision") and shape[0] == 1:
            raise EnvironmentFault("vision_encoder_1: the compiler takes more than the 1.0 GB that the recipe allows", "less")
        if ops.count("MatMul") > 9 and shape[1] == 1:
            raise GateError("decoder_1_t1: Split\ncannot run on the NPU", "")
        return 5

    compiler.says = says
    steps = Steps()
    recipe, choices = tuned(prepared, tmp_path, progress=steps)
    assert steps.done == steps.total
    assert (recipe.qnn.vision_batch, recipe.qnn.attention) == (4, "joined")
    first, second, _ = choices["qnn.vision_batch"].candidates
    assert (first.milliseconds, second.failure) == (None, "")
    assert "1.0 GB" in first.failure
    opening = recipe_text(recipe, list(choices.values()), "qnn:SM8650", "checkpoint", tmp_path).partition("\n\n")[0]
    assert "#        1  not compiled: vision_encoder_1: the compiler takes more than the 1.0 GB that" in opening
    assert "#    split  not compiled: decoder_1_t1: Split cannot run on the NPU" in opening
    assert all(line.startswith("#") for line in opening.splitlines())


def test_an_error_if_nothing_can_be_compiled(prepared: Prepared, tmp_path: Path, compiler: Compiler) -> None:
    def says(name: str, shape: tuple[int, ...], ops: str, memory: int) -> int:
        if name.startswith("decoder"):
            raise GateError(f"{name}: Mish cannot run on the NPU", "report the model")
        return 5

    compiler.says = says
    with pytest.raises(GateError) as error:
        tuned(prepared, tmp_path)
    assert str(error.value) == (
        "chunk_size: none of 32, 128, 256 can be compiled: decoder_1_t32: Mish cannot run on the NPU (report the model)"
    )


def test_what_the_compiler_refuses_is_such_a_failure(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def within_one_megabyte(graph: StaticGraph, soc: Soc, folder: Path, memory: int, vtcm_mb: int, *, half: bool) -> Simulated:
        return simulate(graph, soc, folder, 1 << 20, vtcm_mb, half=half)

    monkeypatch.setattr("pocketvlm.toolchain.backends.qnn.tune.simulate", within_one_megabyte)
    told = r"qnn\.vision_batch: none of 1, 2, 4 can be compiled: vision_encoder_1: the compiler takes more than the 0\.0 GB"
    with pytest.raises(EnvironmentFault, match=told):
        tuned(prepared, tmp_path)
