"""The command line: what goes to which stream, and with which exit code. Answers come from the scripted engine."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pocketvlm import __version__, errors
from pocketvlm.runtime.chat import ChatStream
from pocketvlm.toolchain.cli import main
from pocketvlm.toolchain.commands import chat as chat_module
from pocketvlm.toolchain.commands import run as run_module
from pocketvlm.toolchain.console import Console
from pocketvlm.toolchain.progress import Progress, RichProgress, SilentProgress

from .command_line import REPLY, BundleAt, Call, process


def commands() -> list[str]:
    return ["export", "tune", "run", "chat", "bench", "push", "inspect", "verify", "doctor", "list"]


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in commands()), ["--version"]])
def test_help_imports_nothing_heavy(arguments: Sequence[str]) -> None:
    code = (
        "import sys; from pocketvlm.toolchain.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'transformers', 'numpy', 'tokenizers'} & set(sys.modules);"
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


def test_the_commands_are_those_of_the_design(call: Call) -> None:
    listed = re.findall(r"^  (\w+) {2,}\S", call("--help").out.partition("Commands:")[2], re.MULTILINE)
    assert listed == commands()
    wanted = {
        "export": "-o -c --target --precision --max-seq-len --chunk-size --revision",
        "run": "--image --max-new-tokens --temperature --seed --target --trace --json",
        "tune": "--target -o -c --revision --json",
        "chat": "--target",
        "bench": "--image --prompt-tokens --new-tokens --repetitions --threads --target --device --timeout --runner "
        "--onnxruntime-android --json --markdown",
        "push": "--device --to --json",
        "inspect": "--size --json",
        "verify": "--json",
        "doctor": "--target --phone-runtime --device --json",
        "list": "--json",
    }
    for name, options in wanted.items():
        text = call(name, "--help").out
        for option in [*options.split(), "--debug"]:
            assert re.search(rf"^ .*{option}\b", text, re.MULTILINE), (name, option)


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ([], "[Mm]issing command"),
        (["exprt"], "exprt"),
        (["run"], "BUNDLE"),
        (["run", "b", "--imge", "x"], "--imge"),
        (["run", "b", "p", "--max-new-tokens", "0"], "max-new-tokens"),
        (["run", "b", "p", "--temperature", "-1"], "temperature"),
        (["run", "b", "p", "--seed", "x"], "seed"),
        (["export", "c"], "--output"),
        (["export", "c", "-o", "b", "--precision", "int3"], "precision"),
        (["export", "c", "-o", "b", "--target", "ort-gpu"], r"unknown target 'ort-gpu' \(did you mean ort-cpu\?\)"),
        (["export", "c", "-o", "b", "--chunk-size", "5000"], "chunk-size"),
        (["export", "c", "-o", "b", "--max-seq-len", str(1 << 25)], "max-seq-len"),
        (["doctor", "--target", "ort-cpx"], "did you mean ort-cpu"),
        (["bench", "b", "--json", "--markdown"], "exclude each other"),
        (["export", "c", "-o", "b", "--target", "ort-cpu", "--target", "ort-cpu"], "--target ort-cpu was given twice"),
        (
            ["tune", "c", "-o", "r", "--target", "qnn:SM8650", "--target", "qnn:SM8750"],
            "--target was given twice .give it once",
        ),
        (["doctor", "--target", "qnn:SM8650", "--target", "ort-cpu"], "--target was given twice"),
        (["run", "b", "p", "--target", "a", "--target", "a", "--target", "b"], "--target was given 3 times"),
        (["chat", "b", "--target", "a", "--target", "b"], "--target was given twice"),
        (["bench", "b", "--target", "a", "--target=b"], "--target was given twice"),
        (["export", "c", "-o", "b", "--output", "d"], "--output was given twice"),
        (["inspect", "b", "--size", "1x1", "--size", "2x2"], "--size was given twice .*pocketvlm inspect --help"),
        (["run", "b", "p", "--target", "ort-cpu+"], r"--target': 'ort-cpu\+' lacks a target; write T, or T1\+T2"),
        (["chat", "b", "--target", "+ort-cpu"], r"'\+ort-cpu' lacks a target"),
        (["bench", "b", "--target", ""], "lacks a target"),
        (["export", "c", "-o", f"{__file__}/b"], "test_cli.py/b: .*test_cli.py is a file, not a folder"),
        (["tune", "c", "-o", f"{__file__}/b/r", "--target", "qnn:SM8650"], "/b/r: .*test_cli.py is a file, not a folder"),
        (["list", "colours"], "colours"),
        (["inspect", "b", "--size", "7x"], "--size '7x'"),
        (["inspect", "b", "--size", "0x7"], "--size '0x7'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(call: Call, arguments: Sequence[str], pattern: str) -> None:
    result = call(*arguments)
    result.failed(2, pattern)
    if "--json" in arguments:
        assert result.json["error"]["code"] == "usage"
    else:
        assert result.out == ""


def test_what_may_be_given_more_than_once(call: Call, bundle_at: BundleAt, picture: Path) -> None:
    given = ["--image", picture, "--image", picture, "--json", "--json"]
    assert len(call("run", bundle_at(chain=REPLY), "w5", *given).json["tile_plans"]) == 2
    assert call("run", "--target", "a", "--target", "b", "--help").code == 0


@pytest.mark.parametrize("name", ["run", "chat", "bench"])
def test_help_says_that_an_emulated_npu_has_to_be_named(call: Call, name: str) -> None:
    text = " ".join(call(name, "--help").out.split())
    assert "the first that runs here. An NPU that is only emulated here is used only when it is named." in text


def test_run_streams_the_answer_and_nothing_else(call: Call, bundle_at: BundleAt, picture: Path) -> None:
    result = call("run", bundle_at(chain=REPLY), "w5 w6", "--image", picture)
    assert (result.code, result.out, result.err) == (0, "w10w11w12\n", "")


def test_run_json_is_the_documented_object(call: Call, bundle_at: BundleAt, picture: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    bundle = bundle_at(chain=REPLY)
    arguments = ["--image", picture, "--json", "--trace", trace, "--target", "fake-cpu", "--max-new-tokens", 2]
    found = call("run", bundle, "w5", *arguments).json
    # 8x4 pixels are two tiles of 4x4 side by side and a thumbnail, of two tokens each.
    plan = {"grid": [2, 1], "tiles": 2, "thumbnail": True, "image_tokens": 6}
    assert found.keys() == {"text", "token_ids", "tile_plan", "tile_plans", "metrics"}
    assert (found["text"], found["token_ids"]) == ("w10w11", [10, 11])
    assert (found["tile_plan"], found["tile_plans"]) == (plan, [plan])
    wanted = "load_ms vision_ms tiles image_tokens ttft_ms prefill_tok_s decode_tok_s peak_rss_mb stop_reason"
    assert found["metrics"].keys() >= {*wanted.split(), "backend_requested", "backend_actual"}
    assert (found["metrics"]["stop_reason"], found["metrics"]["backend_requested"]) == ("max_new_tokens", "fake-cpu")
    assert {event["ph"] for event in json.loads(trace.read_text())["traceEvents"]} >= {"X"}
    two = call("run", bundle, "w5", "--image", picture, "--image", picture, "--json").json
    assert two["tile_plans"] == [plan, plan]
    none = call("run", bundle, "w5", "--json").json
    assert (none["tile_plan"], none["tile_plans"]) == (None, [])


def test_run_reads_the_prompt_from_stdin(bundle_at: BundleAt) -> None:
    bundle = bundle_at(chain={5: 10, 6: 20, **REPLY})
    as_argument = process("run", bundle, "w5 w6", "--json").communicate()[0]
    as_input = process("run", bundle, "--json", stdin=subprocess.PIPE).communicate(b"w5 w6\n")[0]
    assert json.loads(as_argument)["token_ids"] == json.loads(as_input)["token_ids"]
    broken = process("run", bundle, stdin=subprocess.PIPE)
    assert b"not UTF-8" in broken.communicate(b"\xff\xfe")[1]
    assert broken.returncode == 3
    argument = process("run", bundle, os.fsdecode(b"w5 \xff"))
    assert b"not valid text" in argument.communicate()[1]
    assert argument.returncode == 3


class Terminal(io.TextIOWrapper):
    def __init__(self, text: str) -> None:
        super().__init__(io.BytesIO(text.encode()))

    def isatty(self) -> bool:
        return True


def test_run_without_a_prompt_on_a_terminal_is_wrong_usage(
    call: Call, bundle_at: BundleAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(""))
    call("run", bundle_at()).failed(2, "no PROMPT")


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (["run", "nowhere", "w5"], 3, "bad_bundle"),
        (["run", "BUNDLE", ""], 3, "bad_prompt"),
        (["run", "BUNDLE", "w5", "--image", "nowhere.png"], 3, "bad_image"),
        (["run", "BUNDLE", " ".join(["w5"] * 99)], 3, "context_length"),
        (["run", "BUNDLE", "w5", "--target", "other"], 2, "usage"),
        (["verify", "BUNDLE"], 3, "bad_bundle"),
        (["inspect", "nowhere"], 3, "bad_checkpoint"),
    ],
)
def test_bad_input_has_its_exit_code_and_json(
    call: Call, bundle_at: BundleAt, arguments: Sequence[str], code: int, kind: str
) -> None:
    given = [str(bundle_at()) if item == "BUNDLE" else item for item in arguments]
    plain = call(*given)
    plain.failed(code, "")
    assert plain.out == ""
    result = call(*given, "--json")
    result.failed(code, "")
    found = result.json["error"]
    assert found.keys() == {"code", "message", "hint"}
    assert found["code"] == kind
    assert found["hint"] in result.err
    assert found["message"] in result.err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.GateError("too bad", "try again"), 4, r"error: too bad \(try again\)"),
        (errors.EnvironmentFault("no disk"), 5, "error: no disk"),
        (errors.CheckpointError("a\nb\x1b[31m"), 3, r"error: a b\\x1b\[31m"),
        (MemoryError(), 5, "error: not enough memory .*"),
        (PermissionError(13, "Permission denied", "x/y"), 5, r"error: x/y: Permission denied \(.*\)"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 5, r"error: .*torch.*pocketvlm\[export\].*"),
        (ModuleNotFoundError("No module named 'rich'", name="rich.table"), 5, r"error: .*rich .*pocketvlm\[cli\].*"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (ZeroDivisionError("division by zero\nmore"), 1, r"error: ZeroDivisionError: division by zero \(.*bug.*\)"),
        (ModuleNotFoundError("x", name="pocketvlm.missing"), 1, "error: ModuleNotFoundError.*bug.*"),
    ],
)
def test_every_exception_becomes_a_line_and_a_code(
    call: Call, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(run_module, "run", fail)
    result = call("run", "bundle", "w5")
    assert result.code == code
    assert re.fullmatch(line + "\n", result.err)
    detailed = call("run", "bundle", "w5", "--debug", "--json")
    assert detailed.code == code
    assert "Traceback" in detailed.err
    assert re.fullmatch(line, detailed.err.splitlines()[-1])
    assert detailed.json["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "package", "extras"),
    [
        (["export", "c", "-o", "b"], "torch", "export"),
        (["export", "c", "-o", "b"], "typer", "export"),
        (["export", "c", "-o", "b", "--target", "ort-cpu", "--target", "qnn:SM8750"], "torch", "export,qnn"),
        (["export", "c", "-o", "b", "--target=qnn:SM8750"], "safetensors", "export,qnn"),
        (["tune", "c", "--target", "qnn:SM8550", "-o", "r.yaml"], "torch", "export,qnn"),
        (["run", "b", "w5", "--target", "qnn:SM8750+ort-cpu"], "typer", "cli,qnn"),
        (["run", "b", "w5"], "typer", "cli"),
    ],
)
def test_a_missing_package_is_told_with_all_that_the_command_needs(
    call: Call, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], package: str, extras: str
) -> None:
    def fail(arguments: object) -> int:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr("pocketvlm.toolchain.commands.application.run_command", fail)
    result = call(*arguments)
    advice = rf"\(pip install 'pocketvlm\[{extras}\]'; in a clone: '\.\[{extras}\]'\)"
    result.failed(5, f"the package {package.partition('.')[0]} is not installed {advice}")


@pytest.mark.parametrize("arguments", [["run", "BUNDLE", "w5"], ["inspect", "BUNDLE"], ["list", "--json"], ["list", "--help"]])
def test_a_reader_that_goes_away_is_not_an_error(bundle_at: BundleAt, arguments: Sequence[str]) -> None:
    bundle = str(bundle_at(chain=REPLY))
    with process(*(bundle if item == "BUNDLE" else item for item in arguments)) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 141


@pytest.mark.parametrize(
    ("number", "code", "told"), [(signal.SIGINT, 130, b"interrupted"), (signal.SIGTERM, 143, b"terminated")]
)
def test_a_signal_ends_an_answer(bundle_at: BundleAt, number: signal.Signals, code: int, told: bytes) -> None:
    bundle = bundle_at(chain={4: 10, 10: 11, 11: 2}, stall={"decoder": [10.0]})
    running = process("run", bundle, "w5")
    assert running.stdout is not None
    assert running.stdout.read(3) == b"w10"
    running.send_signal(number)
    _, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (code, b"error: " + told + b"\n")


def test_sigterm_ends_a_chat_and_not_one_answer_of_it(bundle_at: BundleAt) -> None:
    running = process("chat", bundle_at(chain={4: 10, 10: 11, 11: 2}, stall={"decoder": [10.0]}), stdin=subprocess.PIPE)
    assert running.stdin is not None
    assert running.stdout is not None
    running.stdin.write(b"w5\nw6\n")
    running.stdin.flush()
    assert running.stdout.read(3) == b"w10"
    running.send_signal(signal.SIGTERM)
    assert running.communicate(timeout=60)[1] == b"error: terminated\n"
    assert running.returncode == 143


def test_chat_keeps_the_conversation(call: Call, bundle_at: BundleAt, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[dict[str, Any]]] = []
    original = chat_module.VlmSession.chat

    def chat(self: Any, messages: Any, **options: Any) -> Any:
        asked.append(list(messages))
        return original(self, messages, **options)

    monkeypatch.setattr(chat_module.VlmSession, "chat", chat)
    lines = ["/image nowhere.png", "/image ~no-such-user/a.png", f'/image "{picture}"', "w5", "", "w6", "/new", "w7"]
    monkeypatch.setattr(sys, "stdin", Terminal("\n".join(lines)))
    result = call("chat", bundle_at(chain=REPLY))
    assert (result.code, result.out) == (0, "w10w11w12\n" * 3)
    assert "error: no such image file: nowhere.png" in result.err
    assert "error: no such image file: ~no-such-user/a.png" in result.err
    roles = [[message["role"] for message in messages] for messages in asked]
    assert roles == [["user"], ["user", "assistant", "user"], ["user"]]
    kinds = [[part["type"] for part in messages[-1]["content"]] for messages in asked]
    assert kinds == [["image", "text"], ["text"], ["text"]]
    assert asked[1][1]["content"] == "w10w11w12"


def test_chat_knows_its_commands(call: Call, bundle_at: BundleAt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("/bogus\n/image\n/help\n/etc/hosts is a file\n/quit\nw5"))
    result = call("chat", bundle_at(chain=REPLY))
    assert (result.code, len(result.out.splitlines())) == (0, 1)
    assert "unknown command /bogus" in result.err
    assert "/image needs a file" in result.err
    assert result.err.count("/quit or Ctrl-D ends") == 2


def test_an_interrupt_before_the_first_text_keeps_the_image(
    call: Call, bundle_at: BundleAt, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[dict[str, Any]]] = []
    original_chat, original_next = chat_module.VlmSession.chat, ChatStream.__next__

    def chat(self: Any, messages: Any, **options: Any) -> Any:
        asked.append(list(messages))
        return original_chat(self, messages, **options)

    def press(stream: Any) -> str:
        if len(asked) == 1:
            signal.raise_signal(signal.SIGINT)
        return original_next(stream)

    monkeypatch.setattr(chat_module.VlmSession, "chat", chat)
    monkeypatch.setattr(ChatStream, "__next__", press)
    monkeypatch.setattr(sys, "stdin", Terminal(f"/image {picture}\nw5\nw6"))
    result = call("chat", bundle_at(chain=REPLY))
    assert result.code == 0
    kinds = [[part["type"] for part in messages[-1]["content"]] for messages in asked]
    assert kinds == [["image", "text"], ["image", "text"]]


def test_an_interrupt_at_the_prompt_drops_the_line(call: Call, bundle_at: BundleAt, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pressed(Terminal):
        pressed = False

        def readline(self, *arguments: Any) -> str:
            if not self.pressed:
                self.pressed = True
                signal.raise_signal(signal.SIGINT)
            return super().readline(*arguments)

    monkeypatch.setattr(sys, "stdin", Pressed("w5\n"))
    result = call("chat", bundle_at(chain=REPLY))
    assert (result.code, result.out) == (0, "w10w11w12\n")


@pytest.mark.parametrize("argument", ["long " * 14_000, "x" * 31_000])
def test_a_command_line_that_onnxruntime_cannot_bear(bundle_at: BundleAt, argument: str) -> None:
    running = process("run", bundle_at(chain=REPLY), argument)
    out, err = running.communicate()
    assert (running.returncode, out) == (3, b"")
    assert err.startswith(b"error: the command line holds")
    assert b"on stdin" in err


def test_the_longest_command_line_runs(bundle_at: BundleAt) -> None:
    running = process("run", bundle_at(chain=REPLY), "w5 " + " " * 29_800)
    _, err = running.communicate()
    assert running.returncode in (0, 3), err
    assert b"command line" not in err


def test_the_package_can_be_run(bundle_at: BundleAt) -> None:
    done = subprocess.run([sys.executable, "-m", "pocketvlm", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == __version__


def test_a_bug_after_an_interrupted_answer_is_still_a_bug(
    call: Call, bundle_at: BundleAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    original = chat_module.VlmSession.chat

    def chat(self: Any, messages: Any, **options: Any) -> Any:
        asked.append(messages)
        if len(asked) == 2:
            raise ZeroDivisionError("ours")
        return original(self, messages, **options)

    def press(pieces: object) -> str:
        if len(asked) == 1:
            signal.raise_signal(signal.SIGINT)
        return ""

    monkeypatch.setattr(chat_module.VlmSession, "chat", chat)
    monkeypatch.setattr("pocketvlm.runtime.chat.ChatStream.__next__", press)
    monkeypatch.setattr(sys, "stdin", Terminal("w5\nw6"))
    result = call("chat", bundle_at(chain=REPLY))
    assert (result.code, len(asked)) == (1, 2)
    assert "ZeroDivisionError: ours" in result.err


def test_chat_without_a_terminal_ends_at_an_error(bundle_at: BundleAt) -> None:
    running = process("chat", bundle_at(chain=REPLY), stdin=subprocess.PIPE)
    out, err = running.communicate(b"w5\n/image nowhere.png\nw6\n")
    assert (running.returncode, out) == (3, b"w10w11w12\n")
    assert err.startswith(b"error: no such image file: nowhere.png")


def test_progress_on_a_terminal_draws_bars_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    screen = io.StringIO()
    with RichProgress(Console(file=screen, force_terminal=True, width=100)) as progress:
        progress.stage("calibrate [x]", 3)
        progress.advance(2)
        progress.stage("push", 3_000_000, "bytes")
        progress.advance(1_500_000)
        progress.stage("lower", 1)
        progress.estimate(1, 1, 7200)
    assert "calibrate [x]" in screen.getvalue()
    assert "3/3" in screen.getvalue()
    assert "3.0 MB/3.0 MB" in screen.getvalue()
    assert "2.0 h" in screen.getvalue()
    silent: Progress = SilentProgress()
    silent.stage("x", 1)
    silent.advance()
    silent.note("x")
    silent.estimate(1, 1, 1)
    assert capsys.readouterr() == ("", "")


def test_an_interrupt_that_an_extension_turned_into_another_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def swallow(arguments: object) -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape") from None
        return 0

    monkeypatch.setattr("pocketvlm.toolchain.commands.application.run_command", swallow)
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_sigterm_that_went_no_further_than_a_callback_ends_the_program_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def swallow(arguments: object) -> int:
        with contextlib.suppress(SystemExit):
            signal.raise_signal(signal.SIGTERM)
        return 0

    monkeypatch.setattr("pocketvlm.toolchain.commands.application.run_command", swallow)
    assert main(["list"]) == 143


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device is Linux's")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_output_that_takes_no_more_is_one_line(options: list[str]) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        program = [sys.executable, "-m", "pocketvlm", "list", *options]
        done = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 5
    assert done.stderr == "error: output: no space left on the device (free some space)\n"
