"""The language model of a bundle: its decoder stages alone, as an answer uses them. See runner.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
from runner import Opened, serve

from pocketvlm import __version__
from pocketvlm.runtime.answer import PromptRows
from pocketvlm.runtime.bundle import Bundle
from pocketvlm.runtime.decoder import STAGES, Decoder
from pocketvlm.runtime.engines import load_engine
from pocketvlm.runtime.prompt import PromptTokens
from pocketvlm.runtime.tokenizer import Tokenizer


class PocketVLM:
    """See `runner.LanguageModel`."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer) -> None:
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._latest = 0

    def prefill(self, tokens: list[int]) -> int:
        rows = PromptRows(PromptTokens((tuple(tokens),)), [], self._decoder)
        self._latest = int(self._decoder.prefill(rows).argmax())
        return self._latest

    def step(self) -> int:
        self._latest = int(self._decoder.step(self._latest).argmax())
        return self._latest

    def text(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens)


def open_model(request: dict[str, Any]) -> Opened:
    """Open the decoder's stages, one session per file, with the threads and in the order that `VlmSession` has."""
    # The others do not compare hashes when they load.
    bundle = Bundle.open(Path(request["model"]), verify=False)
    variant = bundle.variant()
    tokenizer = Tokenizer.of(bundle)
    engine = load_engine(variant.engine)
    sessions = {}
    opened: dict[str, Any] = {}
    for name in STAGES:
        file = variant.stages[name].file
        if file not in opened:
            threads = 1 if name == "embed_tokens" else request["threads"]
            opened[file] = engine.open(bundle.path(file), variant.engine_options, threads)
        sessions[name] = opened[file]
    details = {
        "versions": {"pocketvlm": __version__, "onnxruntime": onnxruntime.__version__},
        "kernels": {name: variant.stages[name].kernels for name in ("prefill", "decode")},
        "cache": f"{variant.kv_cache.dtype}, {variant.kv_cache.capacity} positions",
    }
    return Opened(PocketVLM(Decoder(variant, sessions), tokenizer), details)


if __name__ == "__main__":
    serve(open_model)
