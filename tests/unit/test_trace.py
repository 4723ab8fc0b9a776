from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from pocketvlm.errors import EnvironmentFault
from pocketvlm.runtime.trace import Trace


def test_spans_nest_and_are_recorded_even_when_the_body_fails() -> None:
    trace = Trace()
    with pytest.raises(KeyError), trace.span("outer"), trace.span("inner", batch=3):
        raise KeyError
    inner, outer = trace.events
    assert (inner["name"], inner["args"], outer["name"]) == ("inner", {"batch": 3}, "outer")
    assert outer["ts"] <= inner["ts"]
    assert inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"]


def test_saved_file_is_chrome_trace_json_with_thread_names(tmp_path: Path) -> None:
    trace = Trace()
    with trace.span("here"):
        pass

    def work() -> None:
        with trace.span("there"):
            pass

    thread = threading.Thread(target=work, name="worker")
    thread.start()
    thread.join()
    trace.save(tmp_path / "t.json")
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    spans = {event["name"]: event for event in events if event["ph"] == "X"}
    assert spans.keys() == {"here", "there"}
    assert names[spans["there"]["tid"]] == "worker"
    assert names[spans["here"]["tid"]] == threading.current_thread().name
    for span in spans.values():
        assert {"name", "ph", "ts", "dur", "pid", "tid", "args"} <= span.keys()


def test_a_thread_that_gets_the_id_of_an_ended_one_has_a_row_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = Trace()
    monkeypatch.setattr(threading, "get_ident", lambda: 7)

    def work() -> None:
        with trace.span("work"):
            pass

    for name in ("first", "second", "second"):
        thread = threading.Thread(target=work, name=name)
        thread.start()
        thread.join()
    names = {e["tid"]: e["args"]["name"] for e in trace.to_json()["traceEvents"] if e["name"] == "thread_name"}
    assert [names[event["tid"]] for event in trace.events] == ["first", "second", "second"]
    assert sorted(names.values()) == ["first", "second"]


def test_no_span_of_many_threads_is_lost() -> None:
    trace = Trace()

    def work(number: int) -> None:
        for index in range(200):
            with trace.span("work", number=number, index=index):
                pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {(event["args"]["number"], event["args"]["index"]) for event in trace.events}
    assert found == {(number, index) for number in range(4) for index in range(200)}


def test_a_disabled_trace_records_nothing_and_makes_no_objects() -> None:
    trace = Trace(enabled=False)
    with trace.span("work", batch=1):
        pass
    assert trace.events == []
    assert trace.span("a") is trace.span("b")


def test_an_unwritable_path_is_an_environment_fault(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="trace cannot be written"):
        Trace().save(tmp_path / "missing" / "t.json")
