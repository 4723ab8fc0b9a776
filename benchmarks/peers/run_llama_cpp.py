"""A GGUF file through llama.cpp's C interface, as llama-cpp-python binds it. Runs in the peer's own venv. See runner.py."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import sys
import types
from typing import Any

from runner import Opened, serve

CACHE_TYPES = {"f16": 1, "q8_0": 8}  # ggml_type


def bindings() -> Any:
    """The ctypes module alone: the package's own import would add its high-level interface to the memory measured."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("error: llama-cpp-python is not installed here")
    package = types.ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


class LlamaCpp:
    """See `runner.LanguageModel`. Sampling is llama.cpp's own greedy sampler."""

    def __init__(self, library: Any, model: Any, context: Any, batch: int) -> None:
        self._library = library
        self._context = context
        self._batch = batch
        self._vocabulary = library.llama_model_get_vocab(model)
        self._sampler = library.llama_sampler_init_greedy()
        self._token = (library.llama_token * 1)()

    def prefill(self, tokens: list[int]) -> int:
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), False)
        token = self._library.llama_token
        values = (token * len(tokens))(*tokens)
        for start in range(0, len(tokens), self._batch):
            count = min(self._batch, len(tokens) - start)
            part = (token * count).from_buffer(values, start * ctypes.sizeof(token))
            # A batch of this kind asks for the logits of its last position only.
            self._decode(self._library.llama_batch_get_one(part, count))
        return self._sample()

    def step(self) -> int:
        self._decode(self._library.llama_batch_get_one(self._token, 1))
        return self._sample()

    def text(self, tokens: list[int]) -> str:
        pieces = []
        piece = ctypes.create_string_buffer(256)
        for token in tokens:
            length = self._library.llama_token_to_piece(self._vocabulary, token, piece, len(piece), 0, True)
            pieces.append(piece.raw[: max(0, length)])
        return b"".join(pieces).decode("utf-8", errors="replace")

    def _decode(self, batch: Any) -> None:
        status = self._library.llama_decode(self._context, batch)
        if status:
            raise SystemExit(f"error: llama_decode returned {status}")

    def _sample(self) -> int:
        self._token[0] = self._library.llama_sampler_sample(self._sampler, self._context, -1)
        return int(self._token[0])


def open_model(request: dict[str, Any]) -> Opened:
    """Load the file with llama.cpp's defaults (memory-mapped; float16 cache) and the wanted threads and capacity."""
    library = bindings()
    library.llama_backend_init()
    model = library.llama_model_load_from_file(request["model"].encode(), library.llama_model_default_params())
    if model is None:
        raise SystemExit(f"error: llama.cpp cannot load {request['model']}")
    options = library.llama_context_default_params()
    options.n_ctx = request["capacity"]
    options.n_threads = options.n_threads_batch = request["threads"]
    if "flash_attention" in request:
        options.flash_attn_type = int(request["flash_attention"])
    if "cache_type" in request:
        options.type_k = options.type_v = CACHE_TYPES[request["cache_type"]]
    context = library.llama_init_from_model(model, options)
    if context is None:
        raise SystemExit("error: llama.cpp cannot create a context")
    details = {
        "versions": {"llama-cpp-python": importlib.metadata.version("llama-cpp-python")},
        "processor features": library.llama_print_system_info().decode(),
        "cache": f"{request.get('cache_type', 'f16')}, {library.llama_n_ctx(context)} positions",
        "batch": f"n_batch {options.n_batch}, n_ubatch {options.n_ubatch}",
        "flash attention": request.get("flash_attention", "its own choice"),
    }
    return Opened(LlamaCpp(library, model, context, options.n_batch), details)


if __name__ == "__main__":
    serve(open_model)
