"""What has been seen of a chat template, and the prompt data that says so."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Literal

from pocketvlm.runtime.manifest import PromptSpec
from pocketvlm.runtime.prompt import IMAGE_SORT, Joint

Side = Literal["left", "right"]
_IMAGES = "image>image"


class ConflictError(Exception):
    """The template does different things in two places that the data does not tell apart."""


class Findings:
    """Texts and stripped sides by joint, as they are observed."""

    def __init__(self) -> None:
        self._texts: dict[str, dict[str, str]] = {"start": {}, "between": {}, "end": {}, "generation": {}, "within": {}}
        self._trims: dict[Side, dict[str, tuple[str, bool]]] = {"left": {}, "right": {}}

    def copy(self) -> Findings:
        """Findings that can be changed without changing these."""
        return deepcopy(self)

    def note_text(self, joint: Joint, text: str) -> None:
        """Record the text of a joint.

        Raises:
            ConflictError: another text was seen there.
        """
        known = self._texts[joint.table].setdefault(joint.key, text)
        if known != text:
            raise ConflictError(f"it writes {text[:80]!r} at {joint.table} {joint.key!r}, elsewhere {known[:80]!r}")

    def note_trim(self, side: Side, joint: Joint, role: str, stripped: bool) -> None:
        """Record whether a text of `role` loses the white space at that side of it which touches the joint.

        Raises:
            ConflictError: the other was seen there.
        """
        known = self._trims[side].setdefault(joint.trim_key, (role, stripped))
        if known != (role, stripped):
            raise ConflictError(f"it strips white space at the {side} side of the {role}'s text only sometimes")

    def spec(self, image_token: str, images_first: bool) -> PromptSpec:
        """The data, in its shortest form."""
        texts = deepcopy(self._texts)
        image = _take_out_image(texts, image_token, images_first)
        for table in ("start", "between", "end", "generation"):
            plain = {key: text for key, text in texts[table].items() if IMAGE_SORT not in key}
            special = {key: text for key, text in texts[table].items() if plain.get(key.replace(IMAGE_SORT, "")) != text}
            texts[table] = plain | special
        sides = [finding for trims in self._trims.values() for finding in trims.values()]
        stripped = {role for role, _ in sides} - {role for role, strips in sides if not strips}
        trims = {
            side: tuple(key for key, (role, strips) in found.items() if strips and role not in stripped)
            for side, found in self._trims.items()
        }
        return PromptSpec(
            start=texts["start"],
            between=texts["between"],
            end=texts["end"],
            generation=texts["generation"],
            trim=tuple(sorted(stripped)),
            image=image,
            image_token=image_token,
            images_first=images_first,
            within={key: text for key, text in texts["within"].items() if text},
            trim_left=trims["left"],
            trim_right=trims["right"],
        )


def _take_out_image(texts: dict[str, dict[str, str]], image_token: str, images_first: bool) -> str:
    """Cut what always stands around an image token off its joints; return it with the token in the middle."""
    joints = [(table, key) for table, found in texts.items() for key in found if key != _IMAGES]
    before = [(table, key) for table, key in joints if table in ("start", "between", "within") and key.endswith("image")]
    after = [(table, key) for table, key in joints if key.startswith(("image>", f"user{IMAGE_SORT}")) and table != "start"]
    gap = texts["within"][_IMAGES]
    tail = common_prefix([gap, *(texts[table][key] for table, key in after)])
    rest = gap[len(tail) :]
    # Where images come first, what stands before one cannot be told from the beginning of the message.
    head = "" if images_first else common_prefix([rest[::-1], *(texts[table][key][::-1] for table, key in before)])[::-1]
    for table, key in before:
        texts[table][key] = texts[table][key].removesuffix(head)
    for table, key in after:
        texts[table][key] = texts[table][key].removeprefix(tail)
    texts["within"][_IMAGES] = rest.removesuffix(head)
    return head + image_token + tail


def common_prefix(texts: Sequence[str]) -> str:
    """The longest text that all of `texts` begin with."""
    shortest = min(texts, key=len)
    differing = (place for place, letter in enumerate(shortest) if any(text[place] != letter for text in texts))
    return shortest[: next(differing, len(shortest))]
