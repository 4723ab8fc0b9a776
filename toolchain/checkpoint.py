"""A Hugging Face checkpoint directory (or hub id), read without trusting it.

Nothing is unpickled, no file outside the directory is read, and weights are read one tensor at a time.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pocketvlm.errors import CheckpointError, UsageError
from pocketvlm.runtime.memory import drop_mapped_pages
from pocketvlm.toolchain.hub import download, is_hub_id
from pocketvlm.toolchain.licence import read_licence
from pocketvlm.toolchain.safetensors_header import TensorInfo, read_header

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Checkpoint", "TensorInfo"]

MAX_JSON_BYTES = 16 * 1024 * 1024
# Tokenizers with 262,144 tokens take 33 MB; an index names every tensor of a model.
MAX_LARGE_JSON_BYTES = 256 * 1024 * 1024
MAX_TEMPLATE_BYTES = 1024 * 1024
READABLE_DTYPES = ("BF16", "F16", "F32")
_READ_AT_ONCE = 1 << 30
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"[A-Za-z0-9][\w.-]*\.safetensors\Z", re.ASCII)
_DOWNLOAD_AGAIN = "the checkpoint is incomplete or damaged; download it again"


class Checkpoint:
    """An opened checkpoint; a context manager that closes its weight files. Use `Checkpoint.open`.

    Attributes:
        directory: where the files are.
        name: name of the directory, or of the hub repository.
        source: where it came from, fit for a manifest: hub id and revision, or the directory's name.
        config: config.json.
        tensors: every tensor of the weight files, by name.
        preprocessor, processor, generation, tokenizer_config: preprocessor_config.json, processor_config.json,
            generation_config.json and tokenizer_config.json; empty where the file is missing.
        special_tokens: "bos_token", "image_token", ... -> text.
        chat_template: the template that transformers' processor would use; None without one.
        licence: "apache-2.0" or what else the checkpoint says; "unknown" where it says nothing.
    """

    def __init__(self, directory: Path, name: str, source: str) -> None:
        self.directory = directory
        self.name = name
        self.source = source
        self._root = _allowed_root(directory)
        self._files = ExitStack()
        self._open_files: dict[Path, Any] = {}
        self._read_bytes = 0
        if not self.path("config.json").is_file():
            hint = "give the directory that save_pretrained wrote, with config.json, tokenizer.json and model.safetensors"
            raise CheckpointError(f"{directory}: no config.json, so this is not a checkpoint", hint)
        self.config = self._json("config.json")
        self.tensors: Mapping[str, TensorInfo] = self._read_index()
        if not self.path("tokenizer.json").is_file():
            raise CheckpointError(
                f"{directory}: no tokenizer.json",
                "convert the slow tokenizer: AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)",
            )
        self._json("tokenizer.json", MAX_LARGE_JSON_BYTES)
        self.preprocessor = self._json("preprocessor_config.json", optional=True)
        self.processor = self._json("processor_config.json", optional=True)
        self.generation = self._json("generation_config.json", optional=True)
        self.tokenizer_config = self._json("tokenizer_config.json", optional=True)
        self.special_tokens = self._read_special_tokens()
        self.chat_template = self._read_chat_template()
        self.licence = read_licence(
            {name: self.path(name) for name in ("README.md", "LICENSE", "LICENSE.txt", "LICENSE.md")}, self.config
        )

    @classmethod
    def open(cls, path_or_hub_id: str, *, revision: str | None = None) -> Checkpoint:
        """Open a checkpoint directory, or download and open a hub repository ("owner/name").

        Args:
            revision: branch, tag or commit of the hub repository.

        Raises:
            CheckpointError: no such path or repository, not a checkpoint, pickled weights only, damaged or missing files.
            EnvironmentFault: the hub cannot be reached.
            UsageError: `revision` with a directory.
        """
        path = Path(path_or_hub_id)
        if path.exists() or not is_hub_id(path_or_hub_id):
            if revision is not None:
                raise UsageError(f"{path}: a directory has no revision", "leave out --revision")
            if not path.exists():
                hint = "give a checkpoint directory or a hub id (owner/name)"
                raise CheckpointError(f"{path}: no such file or directory", hint)
            if not path.is_dir():
                raise CheckpointError(f"{path}: not a directory", "give the directory that holds config.json")
            name = path.resolve().name
            return cls(path, name, name)
        directory = download(path_or_hub_id, revision)
        # The hub's cache names a snapshot by its commit, which says more than a branch.
        commit = directory.name if _COMMIT.fullmatch(directory.name) else revision
        source = f"{path_or_hub_id}@{commit}" if commit else path_or_hub_id
        return cls(directory, path_or_hub_id.partition("/")[2], source)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the weight files. Closing twice is allowed."""
        self._files.close()
        self._open_files.clear()

    def path(self, name: str) -> Path:
        """Path of the checkpoint's file `name`, which need not exist.

        Raises:
            CheckpointError: it is a link that leaves the checkpoint.
        """
        path = self.directory / name
        if path.is_symlink() and not path.resolve().is_relative_to(self._root):
            raise CheckpointError(f"{path}: a link that leaves the checkpoint", "copy the file itself into the directory")
        return path

    def tensor(self, name: str) -> Tensor:
        """Read one tensor, in its stored type, from disk.

        Raises:
            CheckpointError: no such tensor, its type is not BF16, F16 or F32, or its file has changed since it was opened.
        """
        from safetensors import SafetensorError, safe_open

        if name not in self.tensors:
            raise CheckpointError(f"{self.directory}: no tensor {name!r}", "the weights and config.json do not belong together")
        info = self.tensors[name]
        if info.dtype not in READABLE_DTYPES:
            raise CheckpointError(
                f"{info.file}: tensor {name!r} has type {info.dtype}",
                f"export reads {', '.join(READABLE_DTYPES)}; save the model unquantized",
            )
        try:
            if info.file not in self._open_files:
                self._open_files[info.file] = self._files.enter_context(safe_open(str(info.file), framework="pt"))
            tensor: Tensor = self._open_files[info.file].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{info.file}: tensor {name!r} cannot be read: {error}", _DOWNLOAD_AGAIN) from error
        self._read_bytes += tensor.nbytes
        if self._read_bytes > _READ_AT_ONCE:
            # What has been read would otherwise stay mapped, all of the weights in the end.
            for folder in {file.resolve().parent for file in self._open_files}:
                drop_mapped_pages(folder)
            self._read_bytes = 0
        return tensor

    def same_values(self, first: str, second: str) -> bool:
        """Whether two tensors are equal in shape and every value.

        Raises:
            CheckpointError: as `tensor`.
        """
        one, other = self.tensors[first], self.tensors[second]
        return tuple(one.shape) == tuple(other.shape) and self.tensor(first).equal(self.tensor(second))

    def token_text(self, token_id: int) -> str:
        """Text of a token.

        Raises:
            CheckpointError: the tokenizer has no such token.
        """
        text: str | None = self._tokenizer.id_to_token(token_id) if 0 <= token_id < 1 << 32 else None
        if text is None:
            raise CheckpointError(
                f"{self.directory / 'tokenizer.json'}: no token with id {token_id}, which config.json names",
                "the tokenizer and config.json do not belong together",
            )
        return text

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 over the weight files' bytes, one after the other in the order of their names."""
        digest = hashlib.sha256()
        for path in sorted({info.file for info in self.tensors.values()}):
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()

    @property
    def weight_bytes(self) -> int:
        """Size of all weight files."""
        return sum(path.stat().st_size for path in {info.file for info in self.tensors.values()})

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_file(str(self.path("tokenizer.json")))
        except Exception as error:  # tokenizers raises plain Exception
            raise CheckpointError(f"{self.directory / 'tokenizer.json'}: not a tokenizer: {error}", _DOWNLOAD_AGAIN) from error

    def _read_index(self) -> dict[str, TensorInfo]:
        # The order in which transformers looks for weights.
        if self.path("model.safetensors").is_file():
            tensors = read_header(self.path("model.safetensors"))
        elif self.path("model.safetensors.index.json").is_file():
            tensors = self._read_shards()
        else:
            found = sorted(path.name for path in self.directory.iterdir())
            pickled = [name for name in found if name.endswith(_PICKLES)]
            if pickled:
                raise CheckpointError(
                    f"{self.directory}: only pickled weights ({pickled[0]}), and reading a pickle can run any code",
                    "load it in transformers where you trust it and save_pretrained it as safetensors",
                )
            others = [name for name in found if name.endswith(".safetensors")]
            only = f", only {others[0]}" if others else ""
            raise CheckpointError(
                f"{self.directory}: no model.safetensors or model.safetensors.index.json{only}",
                "give the directory of a whole model (merge an adapter first)" if others else _DOWNLOAD_AGAIN,
            )
        if not tensors:
            raise CheckpointError(f"{self.directory}: the weight files hold no tensor", _DOWNLOAD_AGAIN)
        return tensors

    def _read_shards(self) -> dict[str, TensorInfo]:
        index = self.path("model.safetensors.index.json")
        weight_map = self._json(index.name, MAX_LARGE_JSON_BYTES).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise CheckpointError(f"{index}: no weight_map of names and files", _DOWNLOAD_AGAIN)
        tensors: dict[str, TensorInfo] = {}
        for shard in sorted(set(weight_map.values())):
            if not _SHARD.match(shard):
                hint = "shards lie beside the index; do not trust this checkpoint"
                raise CheckpointError(f"{index}: unsafe shard name {shard!r}", hint)
            if not self.path(shard).is_file():
                raise CheckpointError(f"{index}: names the shard {shard}, which is missing", _DOWNLOAD_AGAIN)
            found = read_header(self.path(shard))
            wanted = {name for name, file in weight_map.items() if file == shard}
            differing = sorted(wanted ^ found.keys())
            if differing:
                side = "is not in" if differing[0] in wanted else "is not listed for"
                raise CheckpointError(f"{index}: tensor {differing[0]!r} {side} the shard {shard}", _DOWNLOAD_AGAIN)
            tensors |= found
        return tensors

    def _read_special_tokens(self) -> dict[str, str]:
        sources = [self._json("special_tokens_map.json", optional=True), self.tokenizer_config]
        for key in ("extra_special_tokens", "model_specific_special_tokens"):
            named = self.tokenizer_config.get(key)
            sources += [named] if isinstance(named, dict) else []
        tokens = {}
        for source in sources:
            for key, value in source.items():
                text = value.get("content") if isinstance(value, dict) else value
                if key.endswith("_token") and isinstance(text, str):
                    tokens[key] = text
        return tokens

    def _read_chat_template(self) -> str | None:
        """The order is that of transformers 5: processor_config.json, chat_template.json, chat_template.jinja, tokenizer."""
        for found in (
            self.processor.get("chat_template"),
            self._json("chat_template.json", optional=True).get("chat_template"),
            self._text("chat_template.jinja"),
            self.tokenizer_config.get("chat_template"),
        ):
            template = _default_template(found)
            if template is not None:
                return template
        return None

    def _text(self, name: str) -> str | None:
        path = self.path(name)
        return _read(path, MAX_TEMPLATE_BYTES) if path.is_file() else None

    def _json(self, name: str, limit: int = MAX_JSON_BYTES, *, optional: bool = False) -> dict[str, Any]:
        path = self.path(name)
        if optional and not path.is_file():
            return {}
        try:
            value = json.loads(_read(path, limit))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: not valid JSON: {error}", _DOWNLOAD_AGAIN) from None
        if not isinstance(value, dict):
            raise CheckpointError(f"{path}: not a JSON object", _DOWNLOAD_AGAIN)
        return value


def _read(path: Path, limit: int) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise CheckpointError(f"{path}: larger than {limit} bytes", "no real checkpoint has such a file")
        return content.decode("utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}", "check the file and its permissions") from error
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: not UTF-8 text", _DOWNLOAD_AGAIN) from None


def _default_template(value: Any) -> str | None:
    """One template, or of several named ones that called "default"."""
    if isinstance(value, list):
        value = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
    if isinstance(value, dict):
        if "default" not in value:
            names = ", ".join(map(str, value))
            raise CheckpointError(f"several chat templates ({names}), none called 'default'", "rename one to 'default'")
        value = value["default"]
    if value is not None and not isinstance(value, str):
        raise CheckpointError(f"the chat template is a {type(value).__name__}, not text", _DOWNLOAD_AGAIN)
    return value


def _allowed_root(directory: Path) -> Path:
    """Where links may lead: the directory itself or, for a snapshot in the hub's cache, that repository's cache folder."""
    resolved = directory.resolve()
    repository = resolved.parent.parent
    if resolved.parent.name == "snapshots" and (repository / "blobs").is_dir():
        return repository
    return resolved
