"""PocketVLM: put a vision-language model on a phone.

`pocketvlm.toolchain` turns a checkpoint directory into a phone bundle; `pocketvlm.runtime` opens the bundle and
answers. The runtime needs numpy, pillow, tokenizers and onnxruntime only.
"""

__version__ = "0.1.0"
