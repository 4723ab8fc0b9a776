"""Chat templates of well-known families, and hostile ones: the data must say what jinja2 writes.

The templates are written here from the families' published behaviour. The oracle is transformers' own renderer, on
conversations that the derivation does not use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from pocketvlm.errors import PromptError, TemplateError
from pocketvlm.runtime.manifest import PromptSpec
from pocketvlm.runtime.prompt import render, text_of
from pocketvlm.toolchain.prompts import derive_prompt

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@dataclass(frozen=True)
class Family:
    """A template, and what it writes for one question about one image (without a system message)."""

    template: str
    question: str
    image_token: str = "<image>"
    form: str = "parts"
    system: bool = True


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FAMILIES = {
    "chatml, minicpm-v": Family(CHATML, "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n", form="strings"),
    "smollm2": Family(
        "{% for m in messages %}"
        "{% if loop.first and m['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
        "{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n",
        form="strings",
    ),
    "qwen2-vl": Family(
        "{%- set seen = namespace(images=0) -%}"
        "{%- for m in messages -%}"
        "{%- if loop.first and m.role != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif -%}"
        "{{ '<|im_start|>' ~ m.role ~ '\n' }}"
        "{%- if m.content is string -%}{{ m.content }}{%- else -%}"
        "{%- for part in m.content -%}"
        "{%- if part.type == 'image' or 'image_url' in part -%}"
        "{%- set seen.images = seen.images + 1 -%}"
        "{%- if add_vision_id %}Picture {{ seen.images }}: {% endif -%}"
        "<|vision_start|><|image_pad|><|vision_end|>"
        "{%- elif 'text' in part -%}{{ part.text }}{%- endif -%}"
        "{%- endfor -%}{%- endif -%}{{ '<|im_end|>\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}",
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|><|vision_end|>What?<|im_end|>\n<|im_start|>assistant\n",
        "<|image_pad|>",
    ),
    "smolvlm, idefics3": Family(
        "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}"
        "{{ ':' if m.content[0].type == 'image' else ': ' }}"
        "{% for part in m.content %}{{ part.text if part.type == 'text' else '<image>' }}{% endfor %}<end_of_utterance>\n"
        "{% endfor %}{{ 'Assistant:' if add_generation_prompt }}",
        "<|im_start|>User:<image>What?<end_of_utterance>\nAssistant:",
    ),
    "llava-1.5": Family(
        "{% for m in messages %}{{ '' if m.role == 'system' else m.role | upper ~ ': ' }}"
        "{% for part in m.content if part.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
        "{% for part in m.content if part.type == 'text' %}"
        "{% if m.role == 'assistant' %}{% generation %}{{ part.text ~ ' ' }}"
        "{% endgeneration %}{% else %}{{ part.text ~ ' ' }}{% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
        "USER: <image>\nWhat? ASSISTANT:",
    ),
    "llava-next-mistral": Family(
        "{% for m in messages %}"
        "{% if m.role == 'system' %}{{ '<<SYS>>\n' + m.content[0].text + '\n<</SYS>>\n\n' }}"
        "{% elif m.role == 'user' %}{{ '[INST] ' }}"
        "{% for part in m.content | selectattr('type', 'eq', 'image') %}{{ '<image>\n' }}{% endfor %}"
        "{% for part in m.content | selectattr('type', 'eq', 'text') %}{{ part.text }}{% endfor %}{{ ' [/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ ' ' + m.content[0].text + eos_token + ' ' }}"
        "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}",
        "[INST] <image>\nWhat? [/INST]",
    ),
    "llava-next-llama3": Family(
        "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
        "{% for part in m.content if part.type == 'image' %}<image>{% endfor %}"
        "{% for part in m.content if part.type == 'text' %}{{ '\n' + part.text + '<|eot_id|>' }}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "llama-3.2-vision": Family(
        "{{- bos_token }}{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{%- if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
        "{% set asked = messages[0].content[0].text | trim %}"
        "{%- else %}{% set rest = messages %}{% set asked = '' %}{% endif %}"
        "{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}"
        "{{- 'Cutting Knowledge Date: December 2023\nToday Date: ' + date_string + '\n\n' }}{{- asked }}{{- '<|eot_id|>' }}"
        "{%- for m in rest %}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
        "{%- for part in m.content %}{% if part.type == 'image' %}"
        "{{ '<|image|>' }}{% else %}{{ part.text }}{% endif %}{% endfor %}"
        "{{- '<|eot_id|>' }}{% endfor %}"
        "{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n<|image|>What?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|image|>",
    ),
    "gemma-3": Family(
        "{{ bos_token }}"
        "{% if messages[0].role == 'system' %}"
        "{% set prefix = messages[0].content[0].text + '\n\n' %}{% set rest = messages[1:] %}"
        "{% else %}{% set prefix = '' %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (prefix if loop.first else '') }}"
        "{% for part in m.content %}{{ '<start_of_image>' if part.type == 'image' else part.text | trim }}{% endfor %}"
        "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        "<s><start_of_turn>user\n<start_of_image>What?<end_of_turn>\n<start_of_turn>model\n",
        "<start_of_image>",
    ),
    "gemma-2": Family(
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
        "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        "<s><start_of_turn>user\n<image>\nWhat?<end_of_turn>\n<start_of_turn>model\n",
        form="strings",
        system=False,
    ),
    "internvl": Family(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% for part in m.content %}{% if part.type == 'image' %}"
        "{{ '<img><IMG_CONTEXT></img>\n' }}{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "<|im_start|>user\n<img><IMG_CONTEXT></img>\nWhat?<|im_end|>\n<|im_start|>assistant\n",
        "<IMG_CONTEXT>",
    ),
    "pixtral, without system": Family(
        "{{ bos_token }}{% for m in messages %}"
        "{% if m.role == 'user' %}[INST]{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{{ part.text if part.type == 'text' else '[IMG]' }}{% endfor %}{% endif %}[/INST]"
        "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}"
        "{% else %}{{ raise_exception('roles') }}{% endif %}{% endfor %}",
        "<s>[INST][IMG]What?[/INST]",
        "[IMG]",
        form="user_parts",
        system=False,
    ),
    "llama-2": Family(
        "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set head = messages[0].content %}"
        "{% else %}{% set rest = messages %}{% set head = false %}{% endif %}"
        "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 is even) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if loop.first and head != false %}{% set content = '<<SYS>>\n' + head + '\n<</SYS>>\n\n' + m.content %}"
        "{% else %}{% set content = m.content %}{% endif %}"
        "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        "<s>[INST] <image>\nWhat? [/INST]",
        form="strings",
    ),
    "llama-3": Family(
        "{% for m in messages %}{{ bos_token if loop.first }}"
        "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        "<s><|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        form="strings",
    ),
    "phi-3": Family(
        "{% for m in messages %}{% if m.role == 'system' and m.content %}{{ '<|system|>\n' + m.content + '<|end|>\n' }}"
        "{% elif m.role == 'user' %}{{ '<|user|>\n' + m.content + '<|end|>\n' }}"
        "{% elif m.role == 'assistant' %}{{ '<|assistant|>\n' + m.content + '<|end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        "<|user|>\n<image>\nWhat?<|end|>\n<|assistant|>\n",
        form="strings",
    ),
    "zephyr": Family(
        "{% for m in messages %}\n{% if m.role == 'user' %}\n{{ '<|user|>\n' + m.content + eos_token }}\n"
        "{% elif m.role == 'system' %}\n{{ '<|system|>\n' + m.content + eos_token }}\n"
        "{% elif m.role == 'assistant' %}\n{{ '<|assistant|>\n'  + m.content + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
        "<|user|>\n<image>\nWhat?</s>\n<|assistant|>\n",
        form="strings",
    ),
    "deepseek-vl": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ 'User: ' + m.content + '\n\n' }}"
        "{% elif m.role == 'assistant' %}{{ 'Assistant: ' + m.content + eos_token }}"
        "{% elif m.role == 'system' %}{{ m.content + '\n\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
        "<s>User: <image_placeholder>\nWhat?\n\nAssistant:",
        "<image_placeholder>",
        form="strings",
    ),
    "a line break before the first of several images": Family(
        "{% for m in messages %}{{ m.role }}:\n{% for part in m.content %}"
        "{% if part.type == 'text' %}{{ part.text }}{% else %}"
        "{{ '\n' if loop.first or m.content[loop.index0 - 1].type == 'text' }}<image>{% endif %}{% endfor %}\n{% endfor %}",
        "user:\n\n<image>What?",
    ),
    "qwen3": Family(
        "{%- set last = namespace(question=0) -%}"
        "{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set last.question = loop.index0 -%}{%- endif -%}{%- endfor -%}"
        "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\n' }}"
        "{%- if m.role == 'assistant' and loop.index0 > last.question and loop.last -%}"
        "{{ '<think>\n\n</think>\n\n' }}{%- endif -%}"
        "{{ m.content }}{{ '<|im_end|>\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}",
        "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n",
        form="strings",
    ),
}
_SPECS: dict[str, PromptSpec] = {}


def spec_of(name: str) -> PromptSpec:
    if name not in _SPECS:
        _SPECS[name] = derive_prompt(FAMILIES[name].template, TOKENS, FAMILIES[name].image_token)
    return _SPECS[name]


def oracle(family: Family, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
    """transformers' rendering, with contents in the form that the template takes."""

    def as_string(content: Any) -> str:
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        images = [family.image_token + "\n" for part in parts if part["type"] == "image"]
        return "".join(images) + "\n".join(part["text"] for part in parts if part["type"] == "text")

    def as_parts(content: Any) -> Any:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content

    converted = []
    for message in messages:
        strings = family.form == "strings" or (family.form == "user_parts" and message["role"] != "user")
        converted.append({**message, "content": (as_string if strings else as_parts)(message["content"])})
    template = family.template.replace("strftime_now('%d %b %Y')", "'26 Jul 2024'")
    rendered, _ = render_jinja_template(
        [converted], chat_template=template, add_generation_prompt=add_generation_prompt, **TOKENS
    )
    return str(rendered[0])


def ours(spec: PromptSpec, messages: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
    return text_of(render(messages, spec, add_generation_prompt), spec.image_token)


def user(*parts: str | None) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts],
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_one_question_about_one_image_reads_as_published(name: str) -> None:
    spec = spec_of(name)
    assert ours(spec, [user(None, "What?")]) == FAMILIES[name].question


@pytest.mark.parametrize("name", FAMILIES)
def test_system_is_taken_where_the_template_takes_it(name: str) -> None:
    spec = spec_of(name)
    messages = [{"role": "system", "content": "Be brief."}, user(None, None, "Compare.")]
    if FAMILIES[name].system:
        assert ours(spec, messages) == oracle(FAMILIES[name], messages, True)
    else:
        with pytest.raises(PromptError, match=r"message 0 \(system\).*it knows assistant or user"):
            ours(spec, messages)


TEXT = st.text(min_size=1, max_size=30).filter(lambda text: bool(text.strip()))
PARTS = st.lists(st.one_of(st.none(), TEXT), min_size=1, max_size=4)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(system=st.none() | TEXT, questions=st.lists(PARTS, min_size=1, max_size=4), answer=TEXT, generation=st.booleans())
def test_any_conversation_equals_transformers(
    name: str, system: str | None, questions: list[list[str | None]], answer: str, generation: bool
) -> None:
    family = FAMILIES[name]
    messages: list[dict[str, Any]] = []
    if system is not None and family.system:
        messages.append({"role": "system", "content": system})
    for question in questions:
        messages += [user(*question), {"role": "assistant", "content": answer}]
    assert ours(spec_of(name), messages[:-1], generation) == oracle(family, messages[:-1], generation)


@pytest.mark.parametrize("name", FAMILIES)
def test_blank_answers_are_written_exactly_or_refused(name: str) -> None:
    messages = [user("a"), {"role": "assistant", "content": ""}, user(None, "b")]
    if "assistant" in spec_of(name).blank:
        assert ours(spec_of(name), messages) == oracle(FAMILIES[name], messages, True)
    else:
        with pytest.raises(PromptError, match=r"message 1 \(assistant\) holds an empty text"):
            ours(spec_of(name), messages)


def test_a_system_text_that_the_template_skips_when_empty_must_not_be_empty() -> None:
    with pytest.raises(PromptError, match=r"message 0 \(system\) holds an empty text"):
        ours(spec_of("phi-3"), [{"role": "system", "content": ""}, user("a")])


def test_no_conversation_of_qwen3_may_end_with_an_answer_since_it_writes_that_one_otherwise() -> None:
    spec = spec_of("qwen3")
    with pytest.raises(PromptError, match=r"message 1 \(assistant\) may not come last"):
        ours(spec, [user("a"), {"role": "assistant", "content": "b"}], False)


def test_data_is_short_and_the_same_every_time() -> None:
    spec = derive_prompt(FAMILIES["qwen2-vl"].template, TOKENS, "<|image_pad|>")
    assert spec == spec_of("qwen2-vl")
    assert spec.image == "<|vision_start|><|image_pad|><|vision_end|>"
    assert set(spec.generation) == {"user"}
    assert not spec.within
    assert not spec.trim


PLAIN_QUESTION = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
HOSTILE = {
    "endless loop": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "does not finish within",
    ),
    "endless loop, for the system role only": (
        PLAIN_QUESTION + "{% if messages[0].role == 'system' %}{% for a in range(99999) %}"
        "{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}",
        "does not finish within",
    ),
    "long range": ("{% for a in range(10**9) %}x{% endfor %}", "without bounds: OverflowError: Range too big"),
    "huge output": ("{% for a in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "writes more than 100000 characters"),
    "huge constant": ("{{ ('x' * 10**10) | length }}", "bytes of memory"),
    "huge text": ("{{ (messages[0].content ~ 'x') * 10**10 }}", "bytes of memory"),
    "huge number": ("{{ (7**(10**9)) % 5 }}", "does not finish within|bytes of memory|crash"),
    "endless recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "without bounds: RecursionError"),
    "attribute": ("{{ ''.__class__ }}", "sandbox forbids: SecurityError: access to attribute '__class__'"),
    "attribute by filter": ("{{ ''|attr('__class__')|attr('__mro__') }}", "sandbox forbids"),
    "attribute by item": ("{{ ''['__class__'] }}", "sandbox forbids"),
    "attribute by format": ("{{ '{0.__class__}'.format(messages) }}", "sandbox forbids"),
    "attribute by map": ("{{ messages|map(attribute='__class__')|list }}", "sandbox forbids"),
    "globals of a function": ("{{ raise_exception.__globals__ }}", "sandbox forbids"),
    "changing the messages": ("{{ messages.append(1) }}", "sandbox forbids"),
    "cycler": ("{{ cycler.__init__.__globals__.os.system('true') }}", "sandbox forbids"),
    "include": ("{% include '/etc/passwd' %}", "no loader"),
    "import": ("{% import 'os' as os %}", "no loader"),
    "extends": ("{% extends 'base' %}", "no loader"),
    "syntax": ("{% for %}", "does not compile: TemplateSyntaxError"),
    "unknown filter": ("{{ messages|shell }}", "does not compile"),
    "always refuses": ("{{ raise_exception('not today') }}", "refuses user .image, text. .*not today"),
    "says nothing": ("hello", "loses, repeats or moves the user's text"),
    "says the question twice": ("{{ messages[-1].content }}{{ messages[-1].content }}", "loses, repeats or moves"),
    "too long": ("x" * 1_000_001, "longer than 1000000 characters"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_template_is_one_clear_error(name: str) -> None:
    template, reason = HOSTILE[name]
    with pytest.raises(TemplateError, match=reason) as caught:
        derive_prompt(template, TOKENS, "<image>", time_limit_s=2, output_limit=100_000)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 700
    assert caught.value.hint


INEXPRESSIBLE = {
    "system goes into the last question": (
        "{% for m in messages %}{% if m.role == 'user' %}[INST]"
        "{{ messages[0].content ~ '\n' if loop.last and messages[0].role == 'system' }}"
        "{{ m.content }}[/INST]{% elif m.role == 'assistant' %}{{ m.content }}</s>{% endif %}{% endfor %}",
        "on system, user .text., assistant, user",
    ),
    "turns are numbered": (
        "{% for m in messages %}{{ loop.index }}. {{ m.content }}\n{% endfor %}",
        "on .*user",
    ),
    "double line breaks are folded": (
        "{% for m in messages %}[{{ m.role }}]{{ m.content.replace('\n\n', '\n') }}{% endfor %}",
        "on .*user .*it writes",
    ),
    "only spaces are stripped": (
        "{% for m in messages %}[{{ m.role }}]{{ m.content.strip(' ') }}{% endfor %}",
        "changes white space in its own way on user",
    ),
    "the last letter decides": (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ '!' if m.content[-1] == '\n' else '.' }}{% endfor %}",
        "on .*user",
    ),
    "texts after the image are lost": (
        "{% for m in messages %}[{{ m.role }}]{% for p in m.content[:2] %}"
        "{{ p.text if p.type == 'text' else '<image>' }}{% endfor %}{% endfor %}",
        "loses or moves texts on user .text, image, text.",
    ),
    "images come last": (
        "{% for m in messages %}[{{ m.role }}]{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}"
        "{% for p in m.content if p.type == 'image' %}<image>{% endfor %}{% endfor %}",
        "loses or moves texts on user .text, image, text.",
    ),
    "another image mark": (
        "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}"
        "{{ p.text if p.type == 'text' else '<picture>' }}{% endfor %}{% endfor %}",
        "does not mark an image with '<image>' once: at the place of an image stands '<picture>",
    ),
}


@pytest.mark.parametrize("name", INEXPRESSIBLE)
def test_template_that_data_cannot_express_is_refused_by_the_conversation(name: str) -> None:
    template, reason = INEXPRESSIBLE[name]
    with pytest.raises(TemplateError, match=reason):
        derive_prompt(template, TOKENS, "<image>")


def test_no_image_token() -> None:
    with pytest.raises(TemplateError, match="no image token"):
        derive_prompt(CHATML, TOKENS, "")


def test_a_template_that_writes_the_date_always_gets_the_same() -> None:
    template = CHATML + "{{ strftime_now('%Y-%m-%d') }}"
    assert derive_prompt(template, TOKENS, "<image>").generation["user"].endswith("2024-07-26")
