"""A model that onnxruntime-genai's builder made. Runs in the peer's own venv. See runner.py."""

from __future__ import annotations

import importlib.metadata
import json
from typing import Any

import numpy as np
import onnxruntime_genai
from runner import Opened, serve


class OnnxRuntimeGenAI:
    """See `runner.LanguageModel`. One generator, rewound, so that its cache is not allocated twice."""

    def __init__(self, model: Any, capacity: int) -> None:
        parameters = onnxruntime_genai.GeneratorParams(model)
        # The least length keeps a token that ends the text from ending the measurement.
        parameters.set_search_options(max_length=capacity, min_length=capacity, do_sample=False)
        self._generator = onnxruntime_genai.Generator(model, parameters)
        self._tokenizer = onnxruntime_genai.Tokenizer(model)

    def prefill(self, tokens: list[int]) -> int:
        self._generator.rewind_to(0)
        self._generator.append_tokens(np.array([tokens], np.int32))
        return self.step()

    def step(self) -> int:
        self._generator.generate_next_token()
        return int(self._generator.get_next_tokens()[0])

    def text(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(np.array(tokens, np.int32)))


def open_model(request: dict[str, Any]) -> Opened:
    """Open the model directory with the wanted number of threads."""
    config = onnxruntime_genai.Config(request["model"])
    options = {"intra_op_num_threads": request["threads"], "inter_op_num_threads": 1}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    details = {
        "versions": {name: importlib.metadata.version(name) for name in ("onnxruntime-genai", "onnxruntime")},
        "cache": f"as built, {request['capacity']} positions",
    }
    return Opened(OnnxRuntimeGenAI(onnxruntime_genai.Model(config), request["capacity"]), details)


if __name__ == "__main__":
    serve(open_model)
