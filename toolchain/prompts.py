"""Chat template -> prompt data, verified against the template itself. See docs/prompt.md.

The template is rendered on conversations whose texts are marks; what stands between the marks is the data. Then a
matrix of other conversations is rendered by jinja2 and from the data, and must come out equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count, pairwise
from typing import Any, Literal

from pocketvlm.errors import TemplateError
from pocketvlm.runtime.manifest import PromptSpec
from pocketvlm.runtime.prompt import IMAGE_ROLE, ImagePart, Item, Message, items_of, joint_of, render, text_of
from pocketvlm.toolchain.template_conversations import (
    IMAGE,
    TEXT,
    Conversation,
    Shape,
    answered_conversations,
    blank_conversations,
    checking_conversations,
    describe,
    fill_texts,
    learning_conversations,
)
from pocketvlm.toolchain.template_findings import ConflictError, Findings, common_prefix
from pocketvlm.toolchain.template_sandbox import SandboxedTemplate

_Form = Literal["parts", "user_parts", "strings"]
# White space around a mark. The two sides differ, so that the output shows which of them the template strips.
_LEFT, _RIGHT = " \v\n", "\n\f "
_HINT = "export needs a template that joins roles, texts and images by fixed text; see docs/prompt.md"


def derive_prompt(
    template: str,
    special_tokens: Mapping[str, str],
    image_token: str,
    *,
    time_limit_s: float = 5,
    output_limit: int = 1_000_000,
) -> PromptSpec:
    """Learn what a chat template does, and check it.

    The template gets all contents as lists of parts if it takes them and marks an image in them with `image_token`;
    else only the user's contents; else all are strings, in which an image is `image_token` and a line break before
    the texts of its message, and these are joined by line breaks (as vLLM serves such checkpoints).

    Args:
        template: jinja2 source of the checkpoint's chat template.
        special_tokens: names for the template: bos_token, eos_token, ...
        image_token: the token that the model's processor replaces by visual tokens.
        time_limit_s: processor time of all renderings together.
        output_limit: characters of one rendering.

    Raises:
        TemplateError: the template is hostile or broken, refuses a user's question, marks images otherwise, or does
            something that the data cannot express; the message names the conversation.
        EnvironmentFault: no process can be started for it.
    """
    if not image_token:
        raise TemplateError("there is no image token to look for in the chat template", "name it in the checkpoint's config")
    with SandboxedTemplate(template, special_tokens, time_limit_s, output_limit) as sandbox:
        return _Derivation(template, sandbox, image_token).run()


class _InexpressibleError(TemplateError):
    """The template is honest, but does something on a conversation that the data cannot express."""


class _Derivation:
    """One derivation: how the template is called, and what has been learned so far."""

    def __init__(self, template: str, sandbox: SandboxedTemplate, image_token: str) -> None:
        self._sandbox = sandbox
        self._image_token = image_token
        prefix = next(name for name in (f"Zq{number}" for number in count()) if name not in template + image_token)
        self._marks = [f"{prefix}x{number}x" for number in range(20)]
        self._form = self._find_form()
        self._images_first = self._form == "strings" or self._moves_images()

    def run(self) -> PromptSpec:
        system = self._takes_system()
        findings = Findings()
        for conversation, generation in learning_conversations(system):
            self._learn(conversation, generation, findings)
        answered = self._learn_answered(system, findings)
        spec = (answered or findings).spec(self._image_token, self._images_first)
        for conversation, generation in checking_conversations(system, answered is not None, self._image_token):
            wanted = self._render(conversation, generation)
            found = text_of(render(conversation, spec, generation), self._image_token)
            if found != wanted:
                where = f"on {describe(conversation, generation)} {_difference(wanted, found)}"
                raise TemplateError(f"the chat template cannot be written as data: {where}", _HINT)
        return replace(spec, blank=self._blank_roles(spec, system))

    def _marked(self, role: str, shape: Shape, first: int = 0) -> Conversation:
        """One message whose texts are marks, from number `first` on."""
        return fill_texts((Message(role, shape),), iter(self._marks[first:]))

    def _find_form(self) -> _Form:
        question = self._marked("user", (IMAGE, TEXT))
        answered = (*question, *self._marked("assistant", (TEXT,), 1), *self._marked("user", (TEXT,), 2))
        for form in ("parts", "user_parts"):
            if all(self._shows(conversation, form) for conversation in (question, answered)):
                return form
        self._check_other_image_mark()
        refusal = self._try(question, "strings")[1]
        if refusal is not None:
            raise TemplateError(f"the chat template refuses {describe(question, True)}: {refusal}", _HINT)
        return "strings"

    def _check_other_image_mark(self) -> None:
        """A template that takes lists but marks an image by something else must not be called with strings."""
        with_image, refusal = self._try(self._marked("user", (IMAGE, TEXT)), "user_parts")
        without, other_refusal = self._try(self._marked("user", (TEXT,)), "user_parts")
        mark = self._marks[0]
        texts = (with_image, without)
        if refusal or other_refusal or with_image == without or any(_is_dump(text) or text.count(mark) != 1 for text in texts):
            return
        place = len(common_prefix(texts))
        raise TemplateError(
            f"the chat template does not mark an image with {self._image_token!r} once: at the place of an image stands "
            f"{with_image[place : place + 60]!r}",
            "the image token of the checkpoint's config and its chat template do not fit together",
        )

    def _moves_images(self) -> bool:
        conversation = self._marked("user", (TEXT, IMAGE, TEXT))
        text = self._render(conversation, True)
        places = [text.find(part) for part in (self._marks[0], self._image_token, self._marks[1])]
        if -1 in places or places[0] > places[2] or places[1] > places[2]:
            raise TemplateError(f"the chat template loses or moves texts on {describe(conversation, True)}", _HINT)
        return places[1] < places[0]

    def _takes_system(self) -> bool:
        """A template that refuses, drops or doubles a system message does not take one; nor will the runtime."""
        conversation = (*self._marked("system", (TEXT,)), *self._marked("user", (TEXT,), 1))
        text, refusal = self._try(conversation, self._form)
        return refusal is None and text.count(self._marks[0]) == 1

    def _learn(self, conversation: Conversation, generation: bool, findings: Findings) -> None:
        marked = fill_texts(conversation, iter(self._marks))
        spaced = fill_texts(conversation, (f"{_LEFT}{mark}{_RIGHT}" for mark in self._marks))
        items = items_of(marked, self._images_first)
        neighbours: list[tuple[Item | None, Item | None]] = list(pairwise([None, *items, None]))
        gaps = self._gaps(self._render(marked, generation), items, conversation, generation)
        wide_gaps = self._gaps(self._render(spaced, generation), items, conversation, generation)
        for (before, after), gap, wide_gap in zip(neighbours, gaps, wide_gaps, strict=True):
            joint = joint_of(before, after, generation)
            right = _RIGHT if before is not None and before.kind == "text" else ""
            left = _LEFT if after is not None and after.kind == "text" else ""
            options = {
                (space_before + gap + space_after): (not space_before, not space_after)
                for space_before in {right, ""}
                for space_after in {left, ""}
            }
            if wide_gap not in options:
                raise _InexpressibleError(
                    f"the chat template changes white space in its own way on {describe(conversation, generation)}: "
                    f"between {right!r} and {left!r} it writes {wide_gap[:80]!r}, without them {gap[:80]!r}",
                    _HINT,
                )
            try:
                findings.note_text(joint, gap)
                if right and before is not None:
                    findings.note_trim("right", joint, before.role, options[wide_gap][0])
                if left and after is not None:
                    findings.note_trim("left", joint, after.role, options[wide_gap][1])
            except ConflictError as conflict:
                raise _InexpressibleError(
                    f"the chat template cannot be written as data: on {describe(conversation, generation)} {conflict}", _HINT
                ) from None

    def _learn_answered(self, system: bool, findings: Findings) -> Findings | None:
        """Add conversations that end with an answer. No prompt does, so a template may treat them in its own way."""
        trial = findings.copy()
        try:
            for conversation, generation in answered_conversations(system):
                self._learn(conversation, generation, trial)
        except _InexpressibleError:
            return None
        return trial

    def _blank_roles(self, spec: PromptSpec, system: bool) -> tuple[str, ...]:
        roles = (*(("system",) if system else ()), IMAGE_ROLE, "assistant")
        lenient = replace(spec, blank=roles)

        def same(conversation: Conversation) -> bool:
            wanted, refusal = self._try(conversation, self._form)
            return refusal is None and text_of(render(conversation, lenient), self._image_token) == wanted

        return tuple(role for role in roles if all(map(same, blank_conversations(role, system))))

    def _gaps(self, text: str, items: Sequence[Item], conversation: Conversation, generation: bool) -> list[str]:
        """Cut a rendering at its marks and image tokens: one more piece than there are items."""
        names = [item.part if isinstance(item.part, str) else self._image_token for item in items]
        places = [text.count(name) == names.count(name) for name in names]
        gaps = []
        for item, name, right_count in zip(items, names, places, strict=True):
            gap, found, text = text.partition(name)
            if not found or not right_count:
                what = f"the {item.role}'s text" if item.kind == "text" else "an image"
                raise _InexpressibleError(
                    f"the chat template loses, repeats or moves {what} on {describe(conversation, generation)}", _HINT
                )
            gaps.append(gap)
        return [*gaps, text]

    def _render(self, conversation: Conversation, generation: bool) -> str:
        text, refusal = self._try(conversation, self._form, generation)
        if refusal is not None:
            raise _InexpressibleError(f"the chat template refuses {describe(conversation, generation)}: {refusal}", _HINT)
        return text

    def _try(self, conversation: Conversation, form: _Form, generation: bool = True) -> tuple[str, str | None]:
        """Rendering, and the template's reason where it refuses."""
        rendered = self._sandbox.render(
            [_template_message(message, form, self._image_token) for message in conversation], generation
        )
        return rendered.text, rendered.refusal

    def _shows(self, conversation: Conversation, form: _Form) -> bool:
        """Whether the template writes every text once and an image token for every image when called in this form."""
        text, refusal = self._try(conversation, form)
        parts = [part for message in conversation for part in message.parts]
        texts = [part for part in parts if isinstance(part, str)]
        return (
            refusal is None
            and not _is_dump(text)
            and all(text.count(mark) == 1 for mark in texts)
            and text.count(self._image_token) == len(parts) - len(texts)
        )


def _template_message(message: Message, form: _Form, image_token: str) -> dict[str, Any]:
    if form == "strings" or (form == "user_parts" and message.role != IMAGE_ROLE):
        texts = [part for part in message.parts if isinstance(part, str)]
        images = (image_token + "\n") * (len(message.parts) - len(texts))
        return {"role": message.role, "content": images + "\n".join(texts)}
    parts = [{"type": "image"} if isinstance(part, ImagePart) else {"type": "text", "text": part} for part in message.parts]
    return {"role": message.role, "content": parts}


def _is_dump(text: str) -> bool:
    """Whether a template that knows strings only has printed a list of parts as such."""
    return "{'type'" in text or '{"type"' in text


def _difference(wanted: str, found: str) -> str:
    place = len(common_prefix([wanted, found]))
    return f"it writes {wanted[place : place + 60]!r} at character {place}, where the data gives {found[place : place + 60]!r}"
