"""`pocketvlm run`"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pocketvlm.errors import PromptError, UsageError
from pocketvlm.runtime.session import VlmSession
from pocketvlm.runtime.trace import Trace
from pocketvlm.toolchain.commands.output import print_json, print_line

MAX_STDIN_BYTES = 16 * 1024 * 1024


def run(
    bundle: Path,
    prompt: str | None,
    images: Sequence[Path],
    max_new_tokens: int,
    temperature: float | None,
    seed: int | None,
    target: str | None,
    trace_path: Path | None,
    as_json: bool,
) -> None:
    """Answer one question and print the answer, or one JSON object:

        {"text", "token_ids", "tile_plan": the first image's, or null, "tile_plans": one per image, "metrics"}

    Raises:
        PocketVLMError: see `VlmSession`.
    """
    text = check_text(prompt) if prompt is not None else _read_prompt()
    trace = Trace(enabled=trace_path is not None)
    if trace_path is not None:
        trace.save(trace_path)  # a path that cannot be written is known before the answer, not after it
    with VlmSession.open(bundle, target=target, trace=trace) as session:
        shown = [{"type": "image", "image": session.encode(path)} for path in images]
        messages = [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]
        answer = session.chat(messages, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        for piece in answer:
            if not as_json:
                sys.stdout.write(piece)
                sys.stdout.flush()
    if trace_path is not None:
        trace.save(trace_path)
    if not as_json:
        print_line()
        return
    plans = [plan.to_json() for plan in answer.tile_plans]
    print_json(
        {
            "text": answer.text,
            "token_ids": list(answer.token_ids),
            "tile_plan": plans[0] if plans else None,
            "tile_plans": plans,
            "metrics": asdict(answer.metrics),
        }
    )


def check_text(text: str) -> str:
    """`text`, if every character of it can be written in UTF-8.

    Raises:
        PromptError: it holds bytes that are no text in the terminal's encoding.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise PromptError("the prompt is not valid text in this terminal's encoding", "write it in UTF-8") from None
    return text


def _read_prompt() -> str:
    if sys.stdin.isatty():
        raise UsageError("no PROMPT", "give one as an argument or on stdin, or use `pocketvlm chat`")
    content = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    if len(content) > MAX_STDIN_BYTES:
        raise PromptError(f"the prompt on stdin is longer than {MAX_STDIN_BYTES} bytes", "shorten it")
    try:
        return content.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError:
        raise PromptError("the prompt on stdin is not UTF-8 text", "write it in UTF-8") from None
