"""Opens a phone bundle and answers. Needs numpy, pillow, tokenizers and onnxruntime; never torch.

with VlmSession.open("demo-bundle") as session:
    image = session.encode("screenshot.png")
    for piece in session.chat([{"role": "user", "content": [{"type": "image", "image": image},
                                                             {"type": "text", "text": "What time is it?"}]}]):
        print(piece, end="", flush=True)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if not __name__.startswith("pocketvlm."):
    raise ImportError("import this package as pocketvlm.runtime, not from the repository root")

if TYPE_CHECKING:
    from pocketvlm.runtime.session import EncodedImage, VlmSession

__all__ = ["EncodedImage", "VlmSession"]


def __getattr__(name: str) -> object:
    # The manifest alone is read by tools that need no engine: load the session only when it is asked for.
    if name in __all__:
        from pocketvlm.runtime import session

        return getattr(session, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
