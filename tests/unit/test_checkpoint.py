"""The checkpoint reader against files that safetensors, transformers and huggingface_hub wrote, whole and damaged."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub_errors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models

from pocketvlm.errors import CheckpointError, EnvironmentFault, PocketVLMError, UsageError
from pocketvlm.toolchain.checkpoint import Checkpoint
from pocketvlm.toolchain.decoders import llama
from pocketvlm.toolchain.hub import ALLOWED_FILES, IGNORED_FILES, is_hub_id
from pocketvlm.toolchain.safetensors_header import read_header

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7,
    "b.weight": torch.tensor([1.5, -2.25], dtype=torch.bfloat16),
    "c.weight": torch.tensor([[0.5]], dtype=torch.float16),
    "position_ids": torch.arange(3),
}


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The least that is a checkpoint."""
    place = tmp_path / "model"
    place.mkdir()
    write_json(place / "config.json", {"model_type": "llava"})
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "word": 1}, unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken("<image>")])
    tokenizer.save(str(place / "tokenizer.json"))
    save_file(TENSORS, place / "model.safetensors")
    return place


def failure(place: Path | str, kind: type[PocketVLMError] = CheckpointError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        Checkpoint.open(str(place), **options)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return caught.value.message


def test_tensors_equal_those_that_were_saved(directory: Path) -> None:
    with Checkpoint.open(str(directory)) as checkpoint:
        assert {name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()} == {
            "a.weight": ("F32", (3, 4)),
            "b.weight": ("BF16", (2,)),
            "c.weight": ("F16", (1, 1)),
            "position_ids": ("I64", (3,)),
        }
        for name in ("a.weight", "b.weight", "c.weight"):
            found = checkpoint.tensor(name)
            assert found.dtype == TENSORS[name].dtype
            assert torch.equal(found, TENSORS[name])
        assert checkpoint.weights_sha256 == hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
        assert checkpoint.name == checkpoint.source == "model"
        with pytest.raises(CheckpointError, match=r"position_ids.*I64"):
            checkpoint.tensor("position_ids")
        with pytest.raises(CheckpointError, match="no tensor 'd'"):
            checkpoint.tensor("d")


def test_shards_are_one_set_of_tensors(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    huggingface_hub.save_torch_state_dict(TENSORS, directory, max_shard_size=30)
    shards = sorted(directory.glob("*.safetensors"))
    assert len(shards) > 1
    with Checkpoint.open(str(directory)) as checkpoint:
        assert set(checkpoint.tensors) == set(TENSORS)
        for name in ("a.weight", "b.weight", "c.weight"):
            assert torch.equal(checkpoint.tensor(name), TENSORS[name])
        joined = b"".join(path.read_bytes() for path in shards)
        assert checkpoint.weights_sha256 == hashlib.sha256(joined).hexdigest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m | {"weight_map": {"a.weight": "../outside.safetensors"}}, "unsafe shard name '../outside.safetensors'"),
        (lambda m: m | {"weight_map": {"a.weight": "/etc/passwd"}}, "unsafe shard name '/etc/passwd'"),
        (lambda m: m | {"weight_map": {"a.weight": "x.safetensors"}}, "names the shard x.safetensors, which is missing"),
        (lambda m: m | {"weight_map": {"new": "one.safetensors", **m["weight_map"]}}, "tensor 'new' is not in the shard"),
        (lambda m: m | {"weight_map": {"a.weight": "one.safetensors"}}, "is not listed for the shard one.safetensors"),
        (lambda m: {}, "no weight_map"),
        (lambda m: {"weight_map": {"a": 1}}, "no weight_map"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(directory: Path, change: Callable[[Any], Any], message: str) -> None:
    (directory / "model.safetensors").rename(directory / "one.safetensors")
    index = {"weight_map": dict.fromkeys(TENSORS, "one.safetensors")}
    write_json(directory / "model.safetensors.index.json", index)
    Checkpoint.open(str(directory)).close()
    write_json(directory / "model.safetensors.index.json", change(index))
    assert message in failure(directory)


def test_what_is_no_checkpoint_is_named(directory: Path, tmp_path: Path) -> None:
    assert "no such file or directory" in failure(tmp_path / "nowhere")
    assert "not a directory" in failure(directory / "config.json")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in failure(tmp_path / "empty")
    assert "has no revision" in failure(directory, UsageError, revision="main")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused_and_never_read(directory: Path, name: str) -> None:
    (directory / "model.safetensors").rename(directory / name)
    assert f"only pickled weights ({name})" in failure(directory)


def test_missing_weights_and_tokenizer(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "adapter_model.safetensors")
    assert "only adapter_model.safetensors" in failure(directory)
    (directory / "adapter_model.safetensors").rename(directory / "model.safetensors")
    (directory / "tokenizer.json").unlink()
    assert "no tokenizer.json" in failure(directory)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 200_000, "not valid JSON"),
        (b" " * (16 * 1024 * 1024 + 1), "larger than 16777216 bytes"),
    ],
)
def test_damaged_json_is_refused(directory: Path, content: bytes, message: str) -> None:
    for name in ("config.json", "generation_config.json"):
        whole = (directory / name).read_bytes() if (directory / name).exists() else b"{}"
        (directory / name).write_bytes(content)
        found = failure(directory)
        assert name in found
        assert message in found
        (directory / name).write_bytes(whole)


def header_of(entries: dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        struct.pack("<Q", 1 << 62),
        header_of({}, length=200_000_000),
        header_of({"a": entry("F32", [2], 0, 8)}),
        header_of({"a": entry("F32", [2], 0, 8)}, b"\x00" * 9),
        header_of({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, b"\x00" * 12),
        header_of({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, b"\x00" * 12),
        header_of({"a": entry("F32", [3], 0, 8)}, b"\x00" * 8),
        header_of({"a": entry("F32", [-2], 0, 8)}, b"\x00" * 8),
        header_of({"a": entry("X9", [2], 0, 8)}, b"\x00" * 8),
        header_of({"a": {"dtype": "F32"}}),
        struct.pack("<Q", 4) + b"nope",
        struct.pack("<Q", 2) + b"[]",
    ],
)
def test_damaged_weight_files_are_refused_as_safetensors_refuses_them(directory: Path, content: bytes) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(SafetensorError), safe_open(path, "pt"):
        pass
    assert "damaged safetensors file" in failure(directory)


def test_a_name_that_stands_twice_in_the_header_is_refused(directory: Path) -> None:
    one = json.dumps({"a": entry("F32", [1], 0, 4)})[1:-1]
    text = f"{{{one}, {one}}}".encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\x00" * 4)
    assert "stands there twice" in failure(directory)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_header_gives_an_error_or_what_safetensors_reads(directory: Path, position: int, bit: int, cut: bool) -> None:
    path = directory / "damaged.safetensors"
    content = bytearray((directory / "model.safetensors").read_bytes())
    position %= 8 + struct.unpack("<Q", content[:8])[0]
    if cut:
        del content[position:]
    else:
        content[position] ^= 1 << bit
    path.write_bytes(content)
    try:
        found = read_header(path)
    except CheckpointError:
        return
    with safe_open(path, "pt") as reader:
        assert set(reader.keys()) == set(found)
        for name, info in found.items():
            assert tuple(reader.get_slice(name).get_shape()) == info.shape


def test_links_out_of_the_checkpoint_are_refused(directory: Path, tmp_path: Path) -> None:
    outside = tmp_path / "secret.json"
    write_json(outside, {"model_type": "llava"})
    (directory / "generation_config.json").symlink_to(outside)
    assert "a link that leaves the checkpoint" in failure(directory)
    (directory / "generation_config.json").unlink()
    (directory / "generation_config.json").symlink_to("config.json")
    assert Checkpoint.open(str(directory)).generation == {"model_type": "llava"}


def test_links_within_a_hub_cache_are_followed(directory: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot = repository / "snapshots" / "0123"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in directory.iterdir():
        path.rename(repository / "blobs" / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    with Checkpoint.open(str(snapshot)) as checkpoint:
        assert torch.equal(checkpoint.tensor("a.weight"), TENSORS["a.weight"])
    other = tmp_path / "hub" / "models--owner--other.json"
    write_json(other, {})
    (snapshot / "generation_config.json").symlink_to(other)
    assert "a link that leaves the checkpoint" in failure(snapshot)


def jinja(name: str) -> str:
    return f"{{{{ '{name}' }}}}"


@pytest.fixture(scope="module")
def processor_class() -> Any:
    from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

    return SimpleNamespace(image=CLIPImageProcessorPil, whole=LlavaProcessor, text=PreTrainedTokenizerFast)


@pytest.mark.parametrize(
    "sources",
    [
        ("processor_config.json", "chat_template.json", "chat_template.jinja", "tokenizer_config.json"),
        ("chat_template.json", "chat_template.jinja", "tokenizer_config.json"),
        ("chat_template.jinja", "tokenizer_config.json"),
        ("chat_template.json", "tokenizer_config.json"),
        ("chat_template.jinja",),
        ("chat_template.json",),
        ("processor_config.json",),
    ],
)
def test_of_several_chat_templates_that_of_transformers_wins(
    directory: Path, sources: tuple[str, ...], processor_class: Any
) -> None:
    tokenizer = processor_class.text(tokenizer_file=str(directory / "tokenizer.json"), unk_token="<unk>")
    processor_class.whole(processor_class.image(), tokenizer, patch_size=14).save_pretrained(directory)
    for name in sources:
        path = directory / name
        if name.endswith(".jinja"):
            path.write_text(jinja(name))
        else:
            stored = json.loads(path.read_text()) if path.exists() else {}
            write_json(path, stored | {"chat_template": jinja(name)})
    theirs = processor_class.whole.from_pretrained(directory).chat_template
    assert Checkpoint.open(str(directory)).chat_template == theirs == jinja(sources[0])


def test_template_of_the_tokenizer_alone_and_of_none(directory: Path, processor_class: Any) -> None:
    assert Checkpoint.open(str(directory)).chat_template is None
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    write_json(directory / "tokenizer_config.json", {"chat_template": several, "tokenizer_class": "PreTrainedTokenizerFast"})
    theirs = processor_class.text.from_pretrained(directory).chat_template["default"]
    assert Checkpoint.open(str(directory)).chat_template == theirs == "plain"
    write_json(directory / "tokenizer_config.json", {"chat_template": several[:1]})
    assert "none called 'default'" in failure(directory)
    write_json(directory / "tokenizer_config.json", {"chat_template": 3})
    assert "not text" in failure(directory)


def test_special_tokens_equal_those_of_transformers(directory: Path, processor_class: Any) -> None:
    names = {"bos_token": "<s>", "eos_token": AddedToken("</s>"), "unk_token": "<unk>"}
    tokenizer = processor_class.text(
        tokenizer_file=str(directory / "tokenizer.json"), extra_special_tokens={"image_token": "<image>"}, **names
    )
    tokenizer.save_pretrained(directory)
    found = Checkpoint.open(str(directory)).special_tokens
    assert found == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "image_token": "<image>"}
    assert found["eos_token"] == tokenizer.eos_token
    old = {"bos_token": {"content": "<old>"}, "pad_token": {"content": "<pad>", "lstrip": False}}
    write_json(directory / "special_tokens_map.json", old)
    found = Checkpoint.open(str(directory)).special_tokens
    assert (found["bos_token"], found["pad_token"]) == ("<s>", "<pad>")


def test_token_text(directory: Path) -> None:
    checkpoint = Checkpoint.open(str(directory))
    assert checkpoint.token_text(2) == "<image>"
    for missing in (3, -1):
        with pytest.raises(CheckpointError, match=f"no token with id {missing}"):
            checkpoint.token_text(missing)
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a tokenizer"):
        Checkpoint.open(str(directory)).token_text(0)


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({}, "unknown"),
        ({"README.md": "# A model\nlicense: mit\n"}, "unknown"),
        ({"README.md": "---\nlanguage: en\nlicense: apache-2.0 # yes\n---\n# A model\n"}, "apache-2.0"),
        ({"README.md": "---\r\nlicense: 'mit'\r\n---\r\n"}, "mit"),
        ({"README.md": "---\nlicense:\n- bsd-3-clause\n- mit\n---\n"}, "bsd-3-clause"),
        ({"README.md": "---\nlicense: [cc-by-4.0]\n---\n"}, "cc-by-4.0"),
        ({"README.md": "---\nlicense: other\nlicense_name: llama-licence\n---\n", "LICENSE": "MIT License"}, "llama-licence"),
        ({"README.md": "---\ntags: x\n---\n", "LICENSE": "\n\n                   Apache License\n  Version 2.0"}, "apache-2.0"),
        ({"LICENSE.txt": "The House Rules\nno shoes"}, "The House Rules"),
    ],
)
def test_licence(directory: Path, files: dict[str, str], licence: str) -> None:
    for name, text in files.items():
        (directory / name).write_bytes(text.encode())
    assert Checkpoint.open(str(directory)).licence == licence


def test_licence_of_the_config_comes_last(directory: Path) -> None:
    write_json(directory / "config.json", {"license": "openrail"})
    assert Checkpoint.open(str(directory)).licence == "openrail"


def test_a_hub_checkpoint_is_downloaded_without_pickles(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def download(hub_id: str, **options: Any) -> str:
        calls.append((hub_id, options))
        return str(directory)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    checkpoint = Checkpoint.open("owner/some-model", revision="v2")
    assert (checkpoint.name, checkpoint.source) == ("some-model", "owner/some-model@v2")
    assert Checkpoint.open("owner/some-model").source == "owner/some-model"
    # As the hub's cache has it: snapshots/COMMIT.
    commit = directory.parent / ("0123456789abcdef" * 3)[:40]
    commit.symlink_to(directory)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda hub_id, **options: str(commit))
    assert Checkpoint.open("owner/some-model", revision="v2").source == f"owner/some-model@{commit.name}"
    assert [(hub_id, options["revision"]) for hub_id, options in calls] == [
        ("owner/some-model", "v2"),
        ("owner/some-model", None),
    ]
    names = [
        "model-00001-of-2.safetensors",
        "config.json",
        "chat_template.jinja",
        "tokenizer.json",
        "pytorch_model.bin",
        "x.pth",
    ]
    patterns = {"allow_patterns": calls[0][1]["allow_patterns"], "ignore_patterns": calls[0][1]["ignore_patterns"]}
    assert patterns == {"allow_patterns": list(ALLOWED_FILES), "ignore_patterns": list(IGNORED_FILES)}
    assert list(huggingface_hub.utils.filter_repo_objects(names, **patterns)) == names[:4]


def http_error(kind: type[Exception], status: int) -> Exception:
    module = sys.modules[hub_errors.HfHubHTTPError.__mro__[1].__module__.partition(".")[0]]
    response = module.Response(status, request=module.Request("GET", "https://hub.invalid/"))
    return kind("first line\nsecond line", response=response)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (http_error(hub_errors.RepositoryNotFoundError, 404), CheckpointError, "no such repository on the hub"),
        (http_error(hub_errors.GatedRepoError, 403), CheckpointError, "accepted its terms"),
        (http_error(hub_errors.RevisionNotFoundError, 404), CheckpointError, "no revision 'v9'"),
        (http_error(hub_errors.HfHubHTTPError, 500), EnvironmentFault, "the hub download failed: first line"),
        (hub_errors.LocalEntryNotFoundError("no connection"), EnvironmentFault, "the hub download failed: no connection"),
        (ConnectionError(), EnvironmentFault, "the hub download failed: ConnectionError"),
    ],
)
def test_a_failing_download_says_why(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[PocketVLMError], message: str
) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert message in failure("owner/some-model", kind, revision="v9")


def test_a_path_is_not_taken_for_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build").mkdir()
    assert is_hub_id("owner/name.v1")
    for text in ("build/model", "./model", "../model", "/owner/name", "name", "a/b/c", "owner/", "owner/na me", "owner/name\n"):
        assert not is_hub_id(text)
    assert re.search("build/model: no such file", failure("build/model"))


def test_a_missing_package_is_not_taken_for_a_damaged_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optimum.utils", None)
    with pytest.raises(ImportError, match="optimum"):
        llama.read({})
