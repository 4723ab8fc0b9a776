"""Exact-match scores of the demo model on screens that training never saw.

    python evaluate.py demo/model                      the eager float32 model
    python evaluate.py build/demo-bundle               the exported bundle
    python evaluate.py demo/model --unseen             fonts and keys that training never saw
    python evaluate.py demo/model --shift 6            every screen moved 6 pixels right and down

Both sides go through the runtime's own image loading, tiling and prompt. Every screen comes from a seed that
training does not use.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from screens import make_screen
from train import EASY_TO_HARD

SEED = 20_000_003
QUESTIONS_PER_SCREEN = 4
Answer = Callable[[Image.Image, list[str]], list[str]]


def eager(path: Path) -> Answer:
    """Answers by the eager model, float32."""
    import torch

    from pocketvlm.runtime.image import load_image, make_tiles
    from pocketvlm.runtime.tiling import plan_tiles
    from pocketvlm.toolchain.checkpoint import Checkpoint
    from pocketvlm.toolchain.model import EagerModel
    from pocketvlm.toolchain.prepare import prepare
    from pocketvlm.toolchain.quantize.calibration import arrange, splice
    from pocketvlm.toolchain.recipe import ExportRecipe

    prepared = prepare(Checkpoint.open(str(path)), ExportRecipe(precision="fp32"))
    prepared.weights.keep_in_memory(1 << 40)
    spec, model = prepared.spec, EagerModel(prepared.spec, prepared.weights)

    def answer(picture: Image.Image, questions: list[str]) -> list[str]:
        image = load_image(picture, spec.image)
        plan = plan_tiles(image.width, image.height, spec.tiling, spec.image_tokens)
        pixels = torch.from_numpy(make_tiles(image, plan, spec.tiling, spec.image, spec.image_tokens.thumbnail_first))
        visual = torch.from_numpy(arrange(model, model.encode_tiles(pixels).numpy(), plan))
        found = []
        for question in questions:
            content = [{"type": "image"}, {"type": "text", "text": question}]
            tokens = prepared.builder.encode([{"role": "user", "content": content}])
            embeddings = splice(model.embed, tokens, [visual])
            found.append(prepared.text.decode(model.generate(embeddings, 300)))
        return found

    return answer


def bundled(path: Path) -> Answer:
    """Answers by a bundle through the runtime."""
    from pocketvlm.runtime import VlmSession

    session = VlmSession.open(path)

    def answer(picture: Image.Image, questions: list[str]) -> list[str]:
        image = session.encode(picture)
        found = []
        for question in questions:
            content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
            found.append("".join(session.chat([{"role": "user", "content": content}], max_new_tokens=300)))
        return found

    return answer


def moved(picture: Image.Image, pixels: int) -> Image.Image:
    """The picture moved right and down, its size unchanged: the rest is filled with the colour of its first corner."""
    canvas = Image.new("RGB", picture.size, picture.getpixel((0, 0)))
    canvas.paste(picture, (pixels, pixels))
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="checkpoint or bundle")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--unseen", action="store_true", help="fonts and keys that training never saw")
    parser.add_argument("--shift", type=int, default=0, help="pixels by which a screen is moved right and down")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--wrong", action="store_true", help="print every wrong answer")
    arguments = parser.parse_args()
    answer = bundled(arguments.path) if (arguments.path / "manifest.json").exists() else eager(arguments.path)
    rng = random.Random(SEED + arguments.unseen)
    right: dict[str, list[bool]] = defaultdict(list)
    grids: dict[str, list[bool]] = defaultdict(list)
    while sum(map(len, right.values())) < arguments.questions:
        grid = EASY_TO_HARD[len(grids) if len(grids) < len(EASY_TO_HARD) else rng.randrange(len(EASY_TO_HARD))]
        screen = make_screen(rng, grid, unseen_font=arguments.unseen, unseen_keys=arguments.unseen)
        chosen = rng.sample(screen.asked, min(QUESTIONS_PER_SCREEN, len(screen.asked)))
        given = answer(moved(screen.image, arguments.shift), [question.text for question in chosen])
        for question, found in zip(chosen, given, strict=True):
            right[question.kind].append(found == question.answer)
            grids[f"{grid[0]}x{grid[1]}"].append(found == question.answer)
            if arguments.wrong and found != question.answer:
                print(f"{grid} {question.text!r}: {found!r}, not {question.answer!r}")
    everything = [hit for hits in right.values() for hit in hits]
    scores = {
        "questions": len(everything),
        "exact_match": sum(everything) / len(everything),
        "by_kind": {kind: [sum(hits), len(hits)] for kind, hits in sorted(right.items())},
        "by_grid": {grid: [sum(hits), len(hits)] for grid, hits in sorted(grids.items())},
    }
    if arguments.json:
        print(json.dumps(scores))
        return
    print(f"exact match {100 * scores['exact_match']:.1f}% of {len(everything)} questions")
    for title in ("by_kind", "by_grid"):
        for name, (hits, total) in scores[title].items():
            print(f"  {name:12} {hits:4} of {total:4}  {100 * hits / total:.1f}%")


if __name__ == "__main__":
    main()
