"""Conversation -> prompt text and token ids, from the bundle's prompt data alone. See docs/prompt.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from pocketvlm.errors import BundleError, PromptError
from pocketvlm.runtime.manifest import PromptSpec
from pocketvlm.runtime.tokenizer import Tokenizer

IMAGE_ROLE = "user"
IMAGE_SORT = "+image"


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image of a message. `source` is the caller's own value, untouched."""

    source: Any = None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks, and texts and images in their order."""

    role: str
    parts: tuple[str | ImagePart, ...]


@dataclass(frozen=True, slots=True)
class TemplateText:
    """Text that the chat template writes: its special tokens are special."""

    text: str


@dataclass(frozen=True, slots=True)
class ContentText:
    """Text that a message holds: nothing in it is special."""

    text: str


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """The place of the visual tokens of image number `index`, counted through the conversation from 0."""

    index: int


Piece = TemplateText | ContentText | ImageSlot


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """A prompt as runs of token ids and image slots, in order."""

    parts: tuple[tuple[int, ...] | ImageSlot, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """One part of a conversation, with the role and the number of its message."""

    role: str
    message: int
    part: str | ImagePart

    @property
    def kind(self) -> Literal["text", "image"]:
        """What the part is."""
        return "image" if isinstance(self.part, ImagePart) else "text"

    @property
    def sort(self) -> str:
        """Role of the message and kind of this part, as the keys of PromptSpec write them."""
        return self.role + (IMAGE_SORT if self.kind == "image" else "")


@dataclass(frozen=True, slots=True)
class Joint:
    """The place between two neighbouring parts: `table[key]` of a PromptSpec holds its text.

    `trim_key` is its name in `trim_left` and `trim_right`.
    """

    table: Literal["start", "within", "between", "end", "generation"]
    key: str
    trim_key: str


def normalise(messages: Sequence[Message | Mapping[str, Any]]) -> tuple[Message, ...]:
    """Read a conversation in the form that chat templates take.

    A message is a mapping with "role" and "content"; the content is a string, or a list of
    `{"type": "text", "text": ...}` and `{"type": "image", ...}`. Several texts of a message that is not the
    user's are one text.

    Raises:
        PromptError: no message at all, or one that has another form.
    """
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        raise PromptError("a conversation must be a list of messages", 'pass [{"role": "user", "content": "..."}]')
    if not messages:
        raise PromptError("the conversation is empty", "pass at least one user message")
    return tuple(_read_message(message, f"message {index}") for index, message in enumerate(messages))


def images_of(messages: Sequence[Message | Mapping[str, Any]]) -> tuple[Any, ...]:
    """The images of a conversation in order of appearance: number `slot.index` belongs into `slot`.

    An image is the value under "image" of its part, or the whole part where it has no such key.

    Raises:
        PromptError: as `normalise`.
    """
    return tuple(part.source for message in normalise(messages) for part in message.parts if isinstance(part, ImagePart))


def items_of(conversation: Iterable[Message], images_first: bool) -> list[Item]:
    """All parts of a conversation in the order in which they are rendered."""
    items: list[Item] = []
    for number, message in enumerate(conversation):
        parts = [Item(message.role, number, part) for part in message.parts]
        items += sorted(parts, key=lambda item: item.kind != "image") if images_first else parts
    return items


def joint_of(before: Item | None, after: Item | None, add_generation_prompt: bool) -> Joint:
    """Name the place between two neighbours; None stands for the start or the end of the conversation."""
    if before is None and after is not None:
        return Joint("start", after.sort, f">{after.role}")
    if before is not None and after is None:
        return Joint("generation" if add_generation_prompt else "end", before.sort, f"{before.role}>")
    if before is None or after is None:
        raise PromptError("the conversation is empty", "pass at least one user message")
    if before.message == after.message:
        return Joint("within", f"{before.kind}>{after.kind}", f"{before.kind}>{after.kind}")
    return Joint("between", f"{before.sort}>{after.sort}", f"{before.role}>{after.role}")


def render(
    messages: Sequence[Message | Mapping[str, Any]], spec: PromptSpec, add_generation_prompt: bool = True
) -> list[Piece]:
    """Write a conversation the way the checkpoint's chat template does.

    Args:
        messages: see `normalise`.
        add_generation_prompt: end with the text that makes the model answer; the last message must be the user's.

    Returns:
        The pieces in order; template text never follows template text.

    Raises:
        PromptError: an empty conversation or prompt, a role or an order of roles that this model does not know,
            an image outside a user message, an empty text in a role that does not take one.
    """
    conversation = normalise(messages)
    _check(conversation, spec, add_generation_prompt)
    items = items_of(conversation, spec.images_first)
    joints = [joint_of(before, after, add_generation_prompt) for before, after in pairwise([None, *items, None])]
    texts = [_text_of(joint, spec) for joint in joints]
    before_image, _, after_image = spec.image.partition(spec.image_token)
    pieces: list[Piece] = []
    images = 0
    for number, item in enumerate(items):
        _append(pieces, texts[number])
        if isinstance(item.part, str):
            text = _strip(item.part, item.role, joints[number].trim_key, joints[number + 1].trim_key, spec)
            if text:
                pieces.append(ContentText(text))
        else:
            _append(pieces, before_image)
            pieces.append(ImageSlot(images))
            _append(pieces, after_image)
            images += 1
    _append(pieces, texts[-1])
    return pieces


def text_of(pieces: Iterable[Piece], image_token: str) -> str:
    """The rendered prompt as one string, one image token for each image."""
    return "".join(image_token if isinstance(piece, ImageSlot) else piece.text for piece in pieces)


class PromptBuilder:
    """Turns conversations into token ids for one model.

    Args:
        spec: the bundle's prompt data.
        tokenizer: the bundle's tokenizer.
        add_special_tokens: TokenizerSpec.add_special_tokens.

    Raises:
        BundleError: the image token is none of the tokenizer's added tokens, or `spec.image` does not hold it once.
    """

    def __init__(self, spec: PromptSpec, tokenizer: Tokenizer, add_special_tokens: bool = False) -> None:
        hint = "export the checkpoint again"
        if not spec.image_token or spec.image.count(spec.image_token) != 1:
            raise BundleError(f"prompt.image {spec.image!r} does not hold {spec.image_token!r} exactly once", hint)
        if spec.image_token not in tokenizer.added_tokens:
            raise BundleError(f"tokenizer.json has no added token {spec.image_token!r}", hint)
        self._spec = spec
        self._tokenizer = tokenizer
        self._add_special_tokens = add_special_tokens
        self._image_token_id = tokenizer.added_tokens[spec.image_token]
        tables = (spec.start, spec.between, spec.end, spec.generation, spec.within, {"image": spec.image})
        template = "\n".join(text for table in tables for text in table.values())
        # An added token that is not "special" (HTML tags, runs of spaces) is ordinary text for the model, unless
        # the template itself speaks with it.
        spoken = {token for token in tokenizer.added_tokens if token in template and not token.isspace()}
        self._control = tokenizer.special_tokens | spoken

    def encode(self, messages: Sequence[Message | Mapping[str, Any]], add_generation_prompt: bool = True) -> PromptTokens:
        """Render a conversation and encode it.

        The ids equal those that Hugging Face's tokenizer gives for the whole rendered prompt, with the image token
        once per image. Text in a message that reads like a special token stays text.

        Raises:
            PromptError: as `render`; or text that the tokenizer cannot encode.
        """
        pieces = render(messages, self._spec, add_generation_prompt)
        slots = [piece for piece in pieces if isinstance(piece, ImageSlot)]
        stretches = [
            (self._spec.image_token if isinstance(piece, ImageSlot) else piece.text, not isinstance(piece, ContentText))
            for piece in pieces
        ]
        ids = self._tokenizer.encode_mixed(stretches, self._control, self._add_special_tokens)
        places = [place for place, token_id in enumerate(ids) if token_id == self._image_token_id]
        if len(places) != len(slots):
            raise BundleError(
                f"the tokenizer finds {len(places)} image tokens in a prompt with {len(slots)} images",
                "the tokenizer does not fit the prompt data; export the checkpoint again",
            )
        parts: list[tuple[int, ...] | ImageSlot] = []
        for begin, (place, slot) in zip([0, *(place + 1 for place in places)], zip(places, slots, strict=True), strict=False):
            parts += [tuple(ids[begin:place]), slot]
        parts.append(tuple(ids[places[-1] + 1 if places else 0 :]))
        return PromptTokens(tuple(part for part in parts if part != ()))


def _read_message(message: Message | Mapping[str, Any], where: str) -> Message:
    if isinstance(message, Message):
        role, parts = message.role, list(message.parts)
    else:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            raise PromptError(f'{where} needs a "role" and a "content"', 'write {"role": "user", "content": "..."}')
        role, content = message["role"], message["content"]
        if isinstance(content, str):
            parts = [content]
        elif isinstance(content, Sequence) and not isinstance(content, bytes):
            parts = [_read_part(part, where) for part in content]
        else:
            raise PromptError(f"{where} ({role}): the content must be text or a list of parts")
    if role != IMAGE_ROLE and parts and not any(isinstance(part, ImagePart) for part in parts):
        parts = ["".join(part for part in parts if isinstance(part, str))]
    return Message(role, tuple(parts))


def _read_part(part: Any, where: str) -> str | ImagePart:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "image":
        return ImagePart(part.get("image", part))
    shown = f"type {kind!r}" if kind is not None else type(part).__name__
    raise PromptError(
        f"{where}: cannot use a content part of {shown}", 'write {"type": "text", "text": "..."} or {"type": "image", ...}'
    )


def _check(conversation: tuple[Message, ...], spec: PromptSpec, add_generation_prompt: bool) -> None:
    pairs = {tuple(key.replace(IMAGE_SORT, "").split(">")) for key in spec.between}
    openers = {key.removesuffix(IMAGE_SORT) for key in spec.start}
    roles = openers.union(*pairs)
    previous = ""
    for number, message in enumerate(conversation):
        where = f"message {number} ({message.role})"
        if message.role not in roles:
            raise PromptError(f"{where}: this model does not know the role", f"it knows {_listed(roles)}")
        if not previous and message.role not in openers:
            raise PromptError(f"{where} may not come first", f"begin with {_listed(openers)}")
        if previous and (previous, message.role) not in pairs:
            followers = {after for before, after in pairs if before == previous}
            raise PromptError(f"{where} may not follow {previous}", f"after {previous} comes {_listed(followers) or 'nothing'}")
        _check_parts(message, where, spec, len(conversation) == 1)
        previous = message.role
    closers = {key.removesuffix(IMAGE_SORT) for key in (spec.generation if add_generation_prompt else spec.end)}
    if previous not in closers:
        raise PromptError(f"message {len(conversation) - 1} ({previous}) may not come last", f"end with {_listed(closers)}")


def _check_parts(message: Message, where: str, spec: PromptSpec, alone: bool) -> None:
    texts = [part for part in message.parts if isinstance(part, str)]
    has_images = len(texts) < len(message.parts)
    if has_images and message.role != IMAGE_ROLE:
        raise PromptError(f"{where}: an image cannot stand here", "images belong into user messages")
    if message.role == IMAGE_ROLE and not has_images and not "".join(texts).strip():
        # Where there is only one message, its number says nothing to whoever wrote it.
        raise PromptError(
            "the prompt is empty" if alone else f"{where}: the prompt is empty", "write a question or add an image"
        )
    if not message.parts or (message.role not in spec.blank and not all(text.strip() for text in texts)):
        raise PromptError(f"{where} holds an empty text, which this model's chat template does not take", "leave it out")
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(f"{where}: character {error.start} is half of a surrogate pair", "pass valid Unicode") from None


def _listed(names: Iterable[str]) -> str:
    return " or ".join(sorted(names))


def _text_of(joint: Joint, spec: PromptSpec) -> str:
    table: dict[str, str] = getattr(spec, joint.table)
    if joint.table == "within":
        return table.get(joint.key, "")
    plain = joint.key.replace(IMAGE_SORT, "")
    text = table.get(joint.key, table.get(plain))
    if text is None:
        raise PromptError(
            f"this model's prompt data has no {joint.table} text for {joint.key!r}", "export the checkpoint again"
        )
    return text


def _strip(text: str, role: str, left: str, right: str, spec: PromptSpec) -> str:
    """`str.strip` takes what Unicode calls white space, as jinja2's `trim` and Python's `strip` in templates do."""
    if role in spec.trim:
        return text.strip()
    text = text.lstrip() if left in spec.trim_left else text
    return text.rstrip() if right in spec.trim_right else text


def _append(pieces: list[Piece], text: str) -> None:
    """Add template text, joined to template text that stands there."""
    if pieces and isinstance(pieces[-1], TemplateText):
        text = pieces.pop().text + text  # type: ignore[union-attr]
    if text:
        pieces.append(TemplateText(text))
