"""The cases of host.py that need a whole session; each runs in a process of its own. See measure.py for the protocol.

Request: {"bundle", "threads", "kind", ...}. Kinds:

- "vision" with "picture", "batch" (null: the bundle's own), "overlap": encode the picture, three times turned so that the
  cache does not know it, after one warm-up.
- "text" with "text", "warm_up", "new_tokens": a question, after another one.
- "image cold", "image encoded" with "picture", "question", "new_tokens", "release": the picture comes with the question,
  or has been encoded before it.

The last two warm up with the mirrored picture. What the chat template puts before a question is in the KV cache when it
comes, as in any later turn: "kv_prefix_reused" says how many positions.
"""

from __future__ import annotations

import io
import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from pocketvlm.runtime.metrics import Metrics, peak_resident_mb
from pocketvlm.runtime.session import VlmSession

_FIGURES = (
    "ttft_ms",
    "vision_ms",
    "prefill_tok_s",
    "decode_tok_s",
    "overhead_ms_per_token",
    "load_ms",
    "prompt_tokens",
    "image_tokens",
    "tiles",
    "kv_prefix_reused",
    "new_tokens",
    "peak_rss_mb",
    "rss_before_release_mb",
    "rss_after_release_mb",
)


def encode_picture(request: dict[str, Any]) -> dict[str, Any]:
    """vision_ms: from picking the picture up to its visual tokens, the median of three."""
    warm_up, *pictures = turned(Path(request["picture"]))
    with VlmSession.open(
        request["bundle"], threads=request["threads"], vision_batch=request["batch"], overlap=request["overlap"]
    ) as session:
        session.encode(warm_up).wait()
        milliseconds = []
        for picture in pictures:
            image = session.encode(picture)
            image.wait()
            milliseconds.append(image.vision_ms)
        tiles = image.tile_plan.encoded_tiles
    vision_ms = statistics.median(milliseconds)
    figures = {"vision_ms": vision_ms, "ms_per_tile": vision_ms / tiles, "tiles": tiles, "peak_rss_mb": peak_resident_mb()}
    return {"figures": figures, "details": {}}


def turned(path: Path) -> list[bytes]:
    """PNG files: the picture mirrored, upside down, turned by half, and as it is. The sizes are the same."""
    with Image.open(path) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    found = []
    for variant in (ImageOps.mirror(picture), ImageOps.flip(picture), picture.rotate(180), picture):
        file = io.BytesIO()
        variant.save(file, "PNG", compress_level=1)
        found.append(file.getvalue())
    return found


def answer_text(request: dict[str, Any]) -> dict[str, Any]:
    """A question without a picture."""
    with VlmSession.open(request["bundle"], threads=request["threads"]) as session:
        _ask(session, [{"type": "text", "text": request["warm_up"]}], request["new_tokens"])
        return _result(_ask(session, [{"type": "text", "text": request["text"]}], request["new_tokens"]))


def answer_about_picture(request: dict[str, Any]) -> dict[str, Any]:
    """A question about a picture that comes with it, or that has been encoded before."""
    mirrored, *_, picture = turned(Path(request["picture"]))
    question = {"type": "text", "text": request["question"]}
    with VlmSession.open(request["bundle"], threads=request["threads"], release=request["release"]) as session:
        _ask(session, [{"type": "image", "image": mirrored}, question], request["new_tokens"])
        image = session.encode(picture) if request["kind"] == "image encoded" else None
        if image is not None:
            image.wait()
        return _result(
            _ask(session, [{"type": "image", "image": picture if image is None else image}, question], request["new_tokens"])
        )


def _ask(session: VlmSession, content: list[dict[str, Any]], new_tokens: int) -> Metrics:
    stream = session.chat([{"role": "user", "content": content}], max_new_tokens=new_tokens, temperature=0.0)
    for _ in stream:
        pass
    return stream.metrics


def _result(metrics: Metrics) -> dict[str, Any]:
    values = asdict(metrics)
    figures = {name: float(values[name]) for name in _FIGURES if values[name] is not None}
    return {"figures": figures, "details": {"stop_reason": metrics.stop_reason, "backend": metrics.backend_actual}}


def main() -> None:
    request = json.load(sys.stdin)
    kinds = {
        "vision": encode_picture,
        "text": answer_text,
        "image cold": answer_about_picture,
        "image encoded": answer_about_picture,
    }
    print(json.dumps(kinds[request["kind"]](request)))


if __name__ == "__main__":
    main()
