"""Turn a GGUF file into Q4_0, the 4-bit format for which llama.cpp has its quickest kernels. Runs in the peer's own venv.

python requantize_llama_cpp.py in.gguf out.gguf
"""

from __future__ import annotations

import ctypes
import sys

from run_llama_cpp import bindings

MOSTLY_Q4_0 = 2


def main() -> None:
    source, target = sys.argv[1:]
    library = bindings()
    library.llama_backend_init()
    options = library.llama_model_quantize_default_params()
    options.ftype = MOSTLY_Q4_0
    options.allow_requantize = True  # the wheel's file is Q4_1 already; there is no other
    if library.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(options)):
        raise SystemExit(f"error: llama.cpp cannot requantize {source}")


if __name__ == "__main__":
    main()
