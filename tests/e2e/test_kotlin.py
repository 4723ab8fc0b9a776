"""Kotlin against Python: the same bundles, pictures and questions, the same tokens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.runtime import VlmSession

from . import kotlin_runtime
from .conftest import Call
from .test_npu import questions

pytestmark = pytest.mark.android

# Of an answer's metrics, those that are no measurement of time or memory.
FIGURES = (
    "tiles",
    "image_tokens",
    "image_was_cached",
    "prompt_tokens",
    "kv_prefix_reused",
    "new_tokens",
    "stop_reason",
    "backend_requested",
    "backend_actual",
)


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    kotlin_runtime.build()


def asked(picture: Path, question: str, tokens: int = 200) -> dict[str, Any]:
    content = [{"type": "image", "image": str(picture)}, {"type": "text", "text": question}]
    return {"messages": [{"role": "user", "content": content}], "max_new_tokens": tokens}


def by_python(bundle: Path, cases: list[dict[str, Any]], target: str | None = None) -> list[dict[str, Any]]:
    found = []
    with VlmSession.open(bundle, target=target) as session:
        for case in cases:
            stream = session.chat(case["messages"], max_new_tokens=case["max_new_tokens"], temperature=0)
            text = "".join(stream)
            found.append(
                {
                    "text": text,
                    "token_ids": list(stream.token_ids),
                    "tile_plan": [plan.to_json() for plan in stream.tile_plans],
                    "metrics": {name: getattr(stream.metrics, name) for name in FIGURES},
                }
            )
    return found


def by_kotlin(bundle: Path, cases: list[dict[str, Any]], folder: Path, target: str | None = None) -> list[dict[str, Any]]:
    found = kotlin_runtime.answers(bundle, cases, folder, *(["--target", target] if target else []))
    return [{**answer, "metrics": {name: answer["metrics"][name] for name in FIGURES}} for answer in found]


def test_fifty_questions_about_the_demos_screens(demo_bundle: Path, tmp_path: Path) -> None:
    cases = [asked(path, question) for path, question in questions()]
    assert len(cases) == 50
    expected = by_python(demo_bundle, cases)
    assert sum(len(answer["token_ids"]) for answer in expected) > 500
    for case, one, other in zip(cases, expected, by_kotlin(demo_bundle, cases, tmp_path), strict=True):
        assert other == one, case["messages"]


def test_several_turns_and_several_pictures(demo_bundle: Path, tmp_path: Path) -> None:
    (path, question), *others = list(questions())[:4]
    first = asked(path, question)["messages"]
    reply = by_python(demo_bundle, [{"messages": first, "max_new_tokens": 200}])[0]["text"]
    further = [*first, {"role": "assistant", "content": reply}, {"role": "user", "content": others[0][1]}]
    both = asked(path, question)["messages"]
    both[0]["content"].insert(0, {"type": "image", "image": str(others[2][0])})
    cases = [{"messages": messages, "max_new_tokens": 40} for messages in (first, further, both)]
    cases.append({"messages": [{"role": "user", "content": "日本語 <image> </s> 🙂"}], "max_new_tokens": 20})
    assert by_kotlin(demo_bundle, cases, tmp_path) == by_python(demo_bundle, cases)


@pytest.mark.parametrize("name", ["paper", "INT8 prefill", "fp32", "fp32, chunks of 7", "fp32, fixed batch"])
def test_every_kind_of_bundle(exported: Callable[[str], Path], photograph: Path, tmp_path: Path, name: str) -> None:
    cases = [asked(photograph, "Which animal is this?", 24), asked(photograph, "And now?", 24)]
    assert by_kotlin(exported(name), cases, tmp_path) == by_python(exported(name), cases)


def test_a_packed_bundle(exported: Callable[[str], Path], photograph: Path, tmp_path: Path) -> None:
    from pocketvlm.toolchain.bundle import pack

    pack(exported("paper"), tmp_path / "bundle.zip")
    cases = [asked(photograph, "Which animal is this?", 8)]
    assert by_kotlin(tmp_path / "bundle.zip", cases, tmp_path) == by_python(exported("paper"), cases)


def test_the_npus_protocol_on_the_cpu(npu_bundle: Path, tmp_path: Path) -> None:
    """Fixed chunks, transposed keys, lm_head apart: the graphs of the NPU before they are compiled."""
    cases = [asked(path, question) for path, question in list(questions())[:8]]
    assert by_kotlin(npu_bundle, cases, tmp_path, "qnn-cpu") == by_python(npu_bundle, cases, "qnn-cpu")


def test_the_bench_writes_what_the_command_prints(
    exported: Callable[[str], Path], photograph: Path, tmp_path: Path, call: Call
) -> None:
    options = ["--prompt-tokens", "24", "--new-tokens", "4", "--repetitions", "2", "--image", photograph]
    expected = call("bench", exported("paper"), "--json", *options).json
    ended = kotlin_runtime.run("--bundle", exported("paper"), "--output", tmp_path / "out.json", *options)
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "out.json").read_text())
    assert found.pop("runtime") == {"name": "kotlin", "version": "0.1.0", "onnxruntime": "1.29.0"}
    assert found.keys() == expected.keys()
    for key in ("model", "variant", "backend_actual", "stages", "emulated", "settings", "note"):
        assert found[key] == expected[key], key
    for case, figures in expected["results"].items():
        assert found["results"][case].keys() == figures.keys()
        for name in ("tiles", "image_tokens", "prompt_tokens", "new_tokens"):
            assert found["results"][case][name] == figures[name], (case, name)
        assert all(figure["median"] > 0 for figure in found["results"][case].values())


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        ("nothing there", "bad_bundle"),
        ("flipped bit", "bad_bundle"),
        ("truncated", "bad_bundle"),
        ("surplus file", "bad_bundle"),
        ("newer schema", "bad_bundle"),
        ("no such target", "usage"),
        ("no such picture", "bad_image"),
        ("truncated picture", "bad_image"),
        ("empty question", "bad_prompt"),
        ("too long", "context_length"),
    ],
)
def test_bad_input_has_the_same_code(
    bundle: Path, photograph: Path, tmp_path: Path, call: Call, damage: str, code: str
) -> None:
    question, picture, target = "What?", photograph, []
    match damage:
        case "nothing there":
            bundle = tmp_path / "nothing"
        case "flipped bit":
            data = bytearray((bundle / "ort-cpu" / "vision.data").read_bytes())
            data[len(data) // 2] ^= 1
            (bundle / "ort-cpu" / "vision.data").write_bytes(data)
        case "truncated":
            with (bundle / "ort-cpu" / "decoder.onnx").open("r+b") as file:
                file.truncate(100)
        case "surplus file":
            (bundle / "more").write_text("x")
        case "newer schema":
            from tests.unit.conftest import write_manifest_text

            text = (bundle / "manifest.json").read_text()
            write_manifest_text(bundle, text.replace('"major": 1', '"major": 2', 1))
        case "no such target":
            target = ["--target", "qnn:SM8750"]
        case "no such picture":
            picture = tmp_path / "nothing.png"
        case "truncated picture":
            picture = tmp_path / "cut.png"
            picture.write_bytes(photograph.read_bytes()[:5000])
        case "empty question":
            question, picture = " ", None
        case "too long":
            question = "word " * 3000
    arguments = ["--image", picture] if picture else []
    expected = call("run", bundle, question, *arguments, *target, "--json")
    case = asked(picture, question) if picture else {"messages": [{"role": "user", "content": question}], "max_new_tokens": 4}
    (tmp_path / "asked.json").write_text(json.dumps([case]))
    ended = kotlin_runtime.run("--bundle", bundle, "--ask", tmp_path / "asked.json", "--output", tmp_path / "out.json", *target)
    error = json.loads(ended.out)["error"]
    assert (error["code"], ended.code) == (code, expected.code)
    assert json.loads(expected.out)["error"]["code"] == code
    assert error["message"]
    assert ended.err.count("error: ") == 1
    assert not (tmp_path / "out.json").exists()
    assert not list(tmp_path.glob("*.part"))


def test_what_is_wrong_with_the_command_line(tmp_path: Path) -> None:
    for arguments, message in (
        ([], "--bundle is missing"),
        (["--bundles", "x"], "no such option: --bundles"),
        (["--bundle"], "--bundle needs a value"),
        (["--bundle", tmp_path, "--threads", "many"], "--threads many is not a whole number"),
        (["--bundle", "a", "--bundle", "b"], "--bundle is given twice"),
    ):
        ended = kotlin_runtime.run(*arguments)
        assert (ended.code, json.loads(ended.out)["error"]["message"]) == (2, message)


@pytest.mark.slow
def test_the_emulated_npu(npu_bundle: Path, tmp_path: Path) -> None:
    """Context binaries through the Java API's plugin providers."""
    import onnxruntime_qnn

    target = "qnn:SM8750"
    cases = [asked(path, question) for path, question in list(questions())[:2]]
    folder = shutil.copytree(npu_bundle, tmp_path / "bundle")
    properties = {
        "pocketvlm.qnn.provider": onnxruntime_qnn.get_library_path(),
        "pocketvlm.qnn.backend": onnxruntime_qnn.get_qnn_htp_path(),
        "pocketvlm.qnn.qairt": onnxruntime_qnn.build_and_package_info.qnn_version,
    }
    found = kotlin_runtime.answers(folder, cases, tmp_path, "--target", target, properties=properties)
    expected = by_python(folder, cases, target)
    assert [answer["token_ids"] for answer in found] == [answer["token_ids"] for answer in expected]
