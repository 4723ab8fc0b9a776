"""PocketVLM: put a vision-language model on a phone.

`pocketvlm.toolchain` turns a checkpoint directory into a phone bundle; `pocketvlm.runtime` opens the bundle and
answers. The runtime needs numpy, pillow, tokenizers and onnxruntime only.
"""

import os

__version__ = "0.1.0"

# ONNX Runtime's packages carry telemetry, which starts when they are imported. Whoever wants it sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
