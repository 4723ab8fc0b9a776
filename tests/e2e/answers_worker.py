"""Asks a bundle about screenshots with the runtime alone, on whichever processor it is run: what came out, as JSON on stdout.

python answers_worker.py BUNDLE SCREENS QUESTIONS.json
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

from pocketvlm.runtime import VlmSession
from pocketvlm.runtime.engines import int8_products


def answers(bundle: Path, screens: Path, questions: dict[str, list[list[str]]]) -> dict[str, Any]:
    """Tokens, text, tile plan and number of prompt tokens of every answer, greedily."""
    found = []
    with VlmSession.open(bundle, threads=1) as session:
        for name, pairs in questions.items():
            for question, _ in pairs:
                content = [{"type": "image", "image": str(screens / name)}, {"type": "text", "text": question}]
                stream = session.chat([{"role": "user", "content": content}], max_new_tokens=64, temperature=0.0)
                text = "".join(stream)
                plans = [plan.to_json() for plan in stream.tile_plans]
                asked = {"screen": name, "question": question, "prompt_tokens": stream.metrics.prompt_tokens}
                found.append({**asked, "tile_plans": plans, "token_ids": list(stream.token_ids), "text": text})
                sys.stderr.write(f"{name}: {question} {text!r}\n")
    return {"machine": platform.machine(), "saturating": int8_products.saturating(), "answers": found}


if __name__ == "__main__":
    file = Path(sys.argv[3])
    json.dump(answers(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(file.read_text(encoding="utf-8"))), sys.stdout)
