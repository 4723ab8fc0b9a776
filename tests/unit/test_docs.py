"""The documentation against the code: links, commands, paths, tables and examples."""

from __future__ import annotations

import ast
import dataclasses
import fnmatch
import importlib
import re
import shlex
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import typer
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    Aimv2VisionConfig,
    Aimv2VisionModel,
    CLIPImageProcessor,
    CLIPVisionConfig,
    Qwen2Config,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

import pocketvlm
from pocketvlm import errors
from pocketvlm.runtime import VlmSession, manifest, tiling, vision
from pocketvlm.runtime.grid_policies import GRID_POLICIES
from pocketvlm.runtime.image import load_image, make_tiles
from pocketvlm.runtime.manifest import ImageTokensSpec, TensorSpec, TilingSpec
from pocketvlm.runtime.metrics import Metrics
from pocketvlm.runtime.prompt import ImageSlot, PromptBuilder
from pocketvlm.runtime.tokenizer import Tokenizer as RuntimeTokenizer
from pocketvlm.toolchain import encoders
from pocketvlm.toolchain.architectures import ARCHITECTURES
from pocketvlm.toolchain.backends import BACKENDS
from pocketvlm.toolchain.backends.onnx_graph import GraphWriter, TensorFile
from pocketvlm.toolchain.backends.ort_ops import OrtOps, Scheme
from pocketvlm.toolchain.checkpoint import Checkpoint
from pocketvlm.toolchain.commands.application import app
from pocketvlm.toolchain.connectors import CONNECTORS
from pocketvlm.toolchain.decoders import DECODERS
from pocketvlm.toolchain.encoders import ENCODERS
from pocketvlm.toolchain.export import export_checkpoint
from pocketvlm.toolchain.progress import SilentProgress
from pocketvlm.toolchain.quantize.calibration import DEFAULT_IMAGES
from pocketvlm.toolchain.recipe import ExportRecipe, TilingOverride
from pocketvlm.toolchain.spec import VisionSpec
from pocketvlm.toolchain.torch_ops import TorchOps

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```[ \t]*$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")
COMMAND = re.compile(r"\s*(?:\$ )?(?:\S*/)?(pocketvlm [a-z][^#|>;\\]*)")
REPOSITORY_PATH = re.compile(r"(?:toolchain|runtime|docs|tests|demo|benchmarks|export_configs|src)/[\w./-]*\Z")
TABLES = {
    "architectures": ARCHITECTURES,
    "backends": BACKENDS,
    "connectors": CONNECTORS,
    "decoders": DECODERS,
    "encoders": ENCODERS,
}
EXAMPLES = {
    "toolchain/architectures/vipllava.py",
    "toolchain/backends/ort_cpu_portable.py",
    "toolchain/connectors/norm_mlp.py",
    "toolchain/decoders/qwen2.py",
    "toolchain/encoders/aimv2.py",
    "runtime/grid_policies/cover.py",
}


def documents() -> list[Path]:
    """Every Markdown file of the repository; what was built or installed is none of it."""
    found = {*ROOT.glob("*.md"), *ROOT.glob("*/**/*.md")}
    return sorted(path for path in found if not re.search(r"(^|/)(\.|build/)", path.relative_to(ROOT).as_posix()))


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose(path: Path) -> str:
    """A document without its fenced blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """Names of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ +(.+?) *$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links() -> Iterator[tuple[Path, str]]:
    for path in documents():
        for target in LINK.findall(SPAN.sub("", prose(path))):
            if not re.match(r"[a-z]+:", target):
                yield path, target


def commands() -> Iterator[tuple[str, str]]:
    """(document, command line) of everything that a reader would type."""
    for path in documents():
        text = path.read_text(encoding="utf-8")
        lines = [line for block in FENCE.finditer(text) for line in block[3].replace("\\\n", " ").splitlines()]
        for line in [*lines, *SPAN.findall(FENCE.sub("", text))]:
            if match := COMMAND.match(line):
                yield path.name, match[1].strip()
    for path in sorted((ROOT / "export_configs").glob("*.yaml")):
        for line in re.findall(r"^#.*?(pocketvlm [a-z].*)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            yield path.name, line


def complaint(program: Any, line: str) -> str | None:
    """Why the command line parser refuses `line`; None if it does not."""
    name, *arguments = shlex.split(line)[1:]
    if name not in program.commands:
        return f"no command {name!r}"
    command = program.commands[name]
    if "[" in line:
        # A synopsis: only its options' names can be checked.
        known = {option for parameter in command.params for option in parameter.opts}
        unknown = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", line)) - known
        return f"no option {sorted(unknown)}" if unknown else None
    if arguments:
        try:
            command.make_context(name, arguments)
        except Exception as error:  # typer has a copy of click's exceptions of its own
            return str(error)
    return None


def complete_blocks() -> list[tuple[str, str, str]]:
    """(document, the file that the block would be or "", code) of every block that is marked as complete."""
    found = []
    for path in documents():
        for block in FENCE.finditer(path.read_text(encoding="utf-8")):
            language, _, rest = block[2].partition(" ")
            if language == "python" and rest.split()[:1] == ["complete"]:
                found.append((path.name, rest.removeprefix("complete").strip(), block[3]))
    return found


def table_rows(text: str, columns: int) -> list[tuple[str, ...]]:
    """The first cells of every table row whose first cell is code, without their back quotes."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("| `")]
    return [tuple(cell.strip().strip("`") for cell in row[:columns]) for row in rows]


def test_every_relative_link_resolves() -> None:
    found = list(links())
    broken = []
    for path, link in found:
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        inside = target.is_relative_to(ROOT) and target.exists()
        if not inside or (anchor and anchor not in anchors(target)):
            broken.append(f"{path.name}: {link}")
    assert len(found) > 20
    assert not broken


def test_every_document_is_in_the_index() -> None:
    listed = {target.partition("#")[0] for path, target in links() if path == ROOT / "docs" / "README.md"}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} <= listed


def test_every_command_line_is_understood() -> None:
    program = typer.main.get_command(app)
    found = list(commands())
    assert len(found) > 10
    assert not [f"{name}: {line}: {why}" for name, line in found if (why := complaint(program, line))]


@pytest.mark.parametrize(
    "line",
    ["pocketvlm exprot x -o y", "pocketvlm run b --imag f", "pocketvlm export x", "pocketvlm bench b --new-tokens many"],
)
def test_wrong_command_lines_would_be_found(line: str) -> None:
    assert complaint(typer.main.get_command(app), line)


def test_every_make_target_exists() -> None:
    known = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    named = {target for path in documents() for target in re.findall(r"`make ([a-z-]+)`", path.read_text(encoding="utf-8"))}
    assert {"demo", "test"} <= named <= known


def test_every_path_exists() -> None:
    named = [(path.name, span) for path in documents() for span in SPAN.findall(prose(path)) if REPOSITORY_PATH.match(span)]
    assert len(named) > 20
    assert not [f"{name}: {span}" for name, span in named if not (ROOT / span).exists()]


def test_the_tree_names_every_module() -> None:
    tree = next(block[3] for block in FENCE.finditer(text_of("docs/architecture.md")) if "toolchain/ " in block[3])
    patterns = re.findall(r"[\w*]+\.py|\w+/", tree)
    modules = [path for top in ("toolchain", "runtime") for path in (ROOT / top).iterdir()]
    names = [path.name + "/" * path.is_dir() for path in modules if not path.name.startswith("__")]
    names = [name for name in names if name.endswith((".py", "/"))]
    assert len(names) > 40
    assert not [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


def test_complete_blocks_compile_and_import_what_exists() -> None:
    blocks = complete_blocks()
    assert {file for _, file, _ in blocks if file} == EXAMPLES
    for document, file, code in blocks:
        for node in ast.walk(ast.parse(code, f"{document} {file}")):
            if isinstance(node, ast.Import):
                for name in node.names:
                    importlib.import_module(name.name)
            elif isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                for name in node.names:
                    if not hasattr(module, name.name):
                        importlib.import_module(f"{node.module}.{name.name}")


def test_every_field_of_the_manifest_is_documented() -> None:
    """In the one section whose heading names its record."""
    sections = re.split(r"^#+ ", text_of("docs/bundle.md"), flags=re.MULTILINE)
    records = [item for item in vars(manifest).values() if isinstance(item, type) and dataclasses.is_dataclass(item)]
    assert manifest.Manifest in records
    for record in records:
        (section,) = [part for part in sections if f"`{record.__name__}`" in part.partition("\n")[0]]
        documented = [row[0] for row in table_rows(section, 1)]
        assert documented == [field.name for field in dataclasses.fields(record)], record.__name__


def test_every_key_of_the_recipe_is_documented_with_its_default() -> None:
    def defaults(record: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
        for field in dataclasses.fields(record):
            value = getattr(record, field.name)
            if dataclasses.is_dataclass(value):
                yield from defaults(value, f"{prefix}{field.name}.")
            elif field.name != "tiling":
                yield prefix + field.name, yaml(value)

    def yaml(value: object) -> str:
        if isinstance(value, tuple):
            return f"[{', '.join(value)}]"
        return str(value).lower() if value is None or isinstance(value, bool) else str(value)

    documented = dict(table_rows(text_of("docs/quantization.md").partition("## The recipe")[2], 2))
    overrides = {f"tiling.{field.name}": "the checkpoint's" for field in dataclasses.fields(TilingOverride)}
    assert documented == {**dict(defaults(ExportRecipe())), **overrides}


def test_every_error_is_documented() -> None:
    kinds = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, errors.PocketVLMError)]
    own = {(item.__name__, str(item.exit_code), item.code) for item in kinds if item is not errors.PocketVLMError}
    assert set(table_rows(text_of("docs/errors.md"), 3)) == own


def test_every_span_and_figure_is_documented() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "runtime").glob("*.py")]
    # The vision stages' spans are named by a variable.
    spans = {name for source in sources for name in re.findall(r'\.span\("([^"]+)"', source)} | set(vision.STAGES)
    text = text_of("docs/schedule.md").partition("## The trace")[2]
    trace, _, metrics = text.partition("## The metrics")
    assert {row[0] for row in table_rows(trace, 1)} == spans
    assert [row[0] for row in table_rows(metrics, 1)] == [field.name for field in dataclasses.fields(Metrics)]


def test_changelog_has_this_version() -> None:
    assert re.search(rf"^## {re.escape(pocketvlm.__version__)}\b", text_of("CHANGELOG.md"), re.MULTILINE)


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enters CONTRIBUTING.md's modules in the tables, by the lines that stand there."""
    places = re.findall(r'^"([\w-]+)": "(pocketvlm\.[\w.:]+)",$', text_of("CONTRIBUTING.md"), re.MULTILINE)
    assert len(places) == len(EXAMPLES)
    for _, file, code in complete_blocks():
        if file:
            name = "pocketvlm." + file.removesuffix(".py").replace("/", ".")
            module = types.ModuleType(name)
            monkeypatch.setitem(sys.modules, name, module)
            exec(compile(code, file, "exec"), module.__dict__)
    for name, place in places:
        assert place.partition(":")[0] in sys.modules
        folder = place.split(".")[2]
        table = GRID_POLICIES if folder == "grid_policies" else TABLES[folder]._entries
        monkeypatch.setitem(table, name, place)


def fill(model: torch.nn.Module) -> None:
    """Weights large enough that a wrong bias, norm or position changes the output."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and "norm" in name and name.endswith("weight"):
            parameter.data.uniform_(0.5, 1.5, generator=generator)
        else:
            parameter.data.normal_(0, 0.2, generator=generator)


def save_vipllava(directory: Path) -> VipLlavaForConditionalGeneration:
    """A tiny ViP-LLaVA with a Qwen2 decoder, saved as transformers saves it."""
    words = ["<s>", "</s>", "<pad>", "<image>", "<unk>", *(f"w{number}" for number in range(5, 96))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken("<image>", normalized=False)])
    vision_config = CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48, image_size=28, patch_size=14
    )
    text_config = Qwen2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        vocab_size=len(words), max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    config = VipLlavaConfig(
        vision_config=vision_config, text_config=text_config, image_token_index=3, vision_feature_layer=[-2, 1]
    )
    model = VipLlavaForConditionalGeneration(config).eval()
    fill(model)
    model.generation_config.eos_token_id = 1
    model.save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(directory)
    (directory / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message.role + ' ' }}{% for part in message.content %}"
        "{{ '<image> ' if part.type == 'image' else part.text + ' ' }}{% endfor %}{% endfor %}"
    )
    return model


@pytest.mark.usefixtures("examples")
def test_contributed_model_answers_as_transformers(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model = save_vipllava(tmp_path / "checkpoint")
    recipe = ExportRecipe(targets=("ort-cpu-portable",), precision="fp32", max_seq_len=128)
    with Checkpoint.open(str(tmp_path / "checkpoint")) as checkpoint:
        export_checkpoint(checkpoint, tmp_path / "bundle", recipe, SilentProgress())
    content = [{"type": "image", "image": DEFAULT_IMAGES[0]}, {"type": "text", "text": "w7 w9"}]
    messages = [{"role": "user", "content": content}]
    with VlmSession.open(tmp_path / "bundle", threads=1) as session:
        stream = session.chat(messages, max_new_tokens=12)
        text = "".join(stream)
        tokens, plan, found = list(stream.token_ids), stream.tile_plans[0], session.manifest
    assert found.model.architecture == "vipllava"
    assert found.variants[0].engine_options["mlas.disable_kleidiai"] == "1"
    picture = load_image(DEFAULT_IMAGES[0], found.image)
    pixels = torch.from_numpy(make_tiles(picture, plan, found.tiling, found.image, thumbnail_first=True))
    tokenizer = RuntimeTokenizer.open(tmp_path / "bundle" / "tokenizer.json")
    prompt = PromptBuilder(found.prompt, tokenizer, found.tokenizer.add_special_tokens).encode(messages)
    ids = [token for part in prompt.parts for token in ([3] * plan.image_tokens if isinstance(part, ImageSlot) else part)]
    with torch.inference_mode():
        mask = torch.ones(1, len(ids), dtype=torch.int64)
        output = model.generate(
            input_ids=torch.tensor([ids]), pixel_values=pixels, attention_mask=mask, max_new_tokens=12, do_sample=False
        )
    expected = output[0, len(ids) :].tolist()
    expected = expected[: expected.index(1)] if 1 in expected else expected
    assert len(set(expected)) > 3
    assert tokens == expected
    assert text == tokenizer.decode(expected)


@pytest.mark.usefixtures("examples")
def test_contributed_encoder_gives_the_features_of_transformers(tmp_path: Path) -> None:
    config = Aimv2VisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14,
        use_head=False,
    )  # fmt: skip
    model = Aimv2VisionModel(config).eval()
    fill(model)
    weights = {canonical_aimv2(name): tensor for name, tensor in model.state_dict().items()}
    encoder = ENCODERS.load("aimv2")
    spec = VisionSpec(
        kind="aimv2", hidden_size=32, layers=3, heads=2, intermediate_size=48, image_size=28, patch_size=14,
        activation="silu", norm_eps=config.rms_norm_eps, feature_layers=(1, 3), final_norm=True,
    )  # fmt: skip
    assert encoder.parameters(spec) == {name: tuple(tensor.shape) for name, tensor in weights.items()}
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        output = model(pixel_values=pixels, output_hidden_states=True)
        expected = torch.cat([output.hidden_states[1], output.last_hidden_state], 2)
        ops = TorchOps(weights.__getitem__)
        eager = encoders.blocks(ops, spec, encoder.patch_embed(ops, spec, pixels))
    torch.testing.assert_close(eager, expected, rtol=1e-4, atol=1e-4)
    with TensorFile(tmp_path / "weights.data") as tensors:
        graph = GraphWriter("tower", tensors)
        lowered = OrtOps(graph, weights.__getitem__, Scheme("float32"))
        source = graph.input(TensorSpec("pixels", "float32", ("batch", 3, 28, 28)))
        graph.rename_output(encoders.blocks(lowered, spec, encoder.patch_embed(lowered, spec, source)), "features")
        graph.output(TensorSpec("features", "float32", ("batch", spec.feature_count, spec.feature_size)))
    graph.save(tmp_path / "tower.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(tmp_path / "tower.onnx"), options, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"pixels": pixels.numpy()})[0], expected.numpy(), rtol=1e-4, atol=1e-4)


def canonical_aimv2(name: str) -> str:
    """Tensor name in transformers' Aimv2VisionModel -> canonical name."""
    parts = {
        "embeddings.position_embedding.weight": "position", "embeddings.patch_embed": "patch",
        "embeddings.rms_norm": "patch_norm", "rms_norm1": "norm1", "rms_norm2": "norm2", "rms_norm": "final_norm",
        "attention.q_proj": "q", "attention.k_proj": "k", "attention.v_proj": "v", "attention.out_proj": "o",
        "ffn.gate_proj": "gate", "ffn.up_proj": "up", "ffn.down_proj": "down", "vision_model.": "", "encoder.": "",
    }  # fmt: skip
    for theirs, ours in parts.items():
        name = name.replace(theirs, ours)
    return f"vision.{name}"


@pytest.mark.usefixtures("examples")
def test_contributed_rule_picks_the_smallest_grid_that_holds_the_image() -> None:
    grids = ((1, 1), (2, 1), (1, 2), (2, 2), (3, 3))
    spec = TilingSpec("cover", 384, grids, "several_tiles")
    tokens = ImageTokensSpec(2, 2, "tile_by_tile")
    wanted = {(384, 384): (1, 1), (385, 10): (2, 1), (10, 768): (1, 2), (700, 700): (2, 2), (5000, 9): (3, 3)}
    assert {size: tiling.plan_tiles(*size, spec, tokens).grid for size in wanted} == wanted
