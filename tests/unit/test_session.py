"""The whole runtime on the fake engine: what the decoder saw, position by position, decides every token."""

from __future__ import annotations

import gc
import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketvlm.errors import (
    BundleError,
    Cancelled,
    ContextLengthError,
    EnvironmentFault,
    ImageError,
    PromptError,
    UsageError,
)
from pocketvlm.runtime import EncodedImage, VlmSession, encoding
from pocketvlm.runtime.engines.fake import FakeEngine, FakeSession, checksum
from pocketvlm.runtime.manifest import GenerationSpec
from pocketvlm.runtime.tokenizer import StreamDecoder
from pocketvlm.runtime.trace import Trace

USER, END, BOT, VOCABULARY = 1, 2, 4, 96
# After <bot> comes w10, w11, ... w14 and the end.
REPLY = {BOT: 10, 10: 11, 11: 12, 12: 13, 13: 14, 14: END}

Open = Callable[..., VlmSession]


@pytest.fixture
def open_session(bundle_at: Callable[..., Path]) -> Iterator[Open]:
    opened: list[VlmSession] = []

    def make(script: dict[str, Any] | None = None, **options: Any) -> VlmSession:
        opened.append(VlmSession.open(bundle_at(**(script or {})), **options))
        return opened[-1]

    yield make
    for session in opened:
        session.close()


def picture(value: int, width: int = 4, height: int = 4) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def user(*parts: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part} for part in parts]
    return {"role": "user", "content": content}


def image_values(value: int, tiles: int = 1) -> list[float]:
    """Two tokens per tile; each vision stage adds one to the mean pixel."""
    return [value / 255 + 3] * 2 * tiles


def continuation(values: list[float], count: int, chain: dict[int, int] | None = None) -> tuple[int, ...]:
    """What the fake decoder answers to a context, by its published rule."""
    context, answer = list(values), []
    while len(answer) < count:
        token = (chain or {}).get(round(context[-1]), checksum(context, VOCABULARY))
        if token == END:
            break
        answer.append(token)
        context.append(token)
    return tuple(answer)


def test_a_question_about_an_image(open_session: Open) -> None:
    stream = open_session().chat([user(picture(255), "w7 w8")], max_new_tokens=12)
    pieces = list(stream)
    expected = continuation([USER, *image_values(255), 7, 8, BOT], 12)
    assert stream.token_ids == expected
    assert stream.text == "".join(pieces)
    assert "" not in pieces
    assert len(expected) > 3


def test_tiles_stand_in_the_prompt_in_order(open_session: Open) -> None:
    """8 x 4 pixels, black left, white right: two tiles, the thumbnail first."""
    image = np.concatenate([picture(0), picture(255)], axis=1)
    stream = open_session(vision_batch=1).chat([user("w7", image)], max_new_tokens=6)
    list(stream)
    thumbnail = Image.fromarray(image).resize((4, 4), Image.Resampling.BICUBIC)
    mean = float(np.asarray(thumbnail, np.float64).mean() / 255)
    values = [USER, 7, mean + 3, mean + 3, 3, 3, 4, 4, BOT]
    assert stream.token_ids == continuation(values, 6)
    assert stream.tile_plans[0].grid == (2, 1)
    assert (stream.metrics.tiles, stream.metrics.image_tokens, stream.metrics.prompt_tokens) == (3, 6, 9)


def test_several_images_keep_their_order(open_session: Open) -> None:
    session = open_session()
    late = session.encode(picture(0))
    stream = session.chat([user(picture(255), "w7", late, picture(0))], max_new_tokens=5)
    list(stream)
    values = [USER, *image_values(255), 7, *image_values(0), *image_values(0), BOT]
    assert stream.token_ids == continuation(values, 5)


@pytest.mark.parametrize("kind", ["path", "bytes", "pillow", "array", "encoded"])
def test_every_kind_of_image_source(open_session: Open, tmp_path: Path, kind: str) -> None:
    session = open_session()
    image = Image.fromarray(picture(90))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    image.save(tmp_path / "i.png")
    sources = {"path": tmp_path / "i.png", "bytes": buffer.getvalue(), "pillow": image, "array": picture(90)}
    source = session.encode(image) if kind == "encoded" else sources[kind]
    stream = session.chat([user(source, "w7")], max_new_tokens=3)
    list(stream)
    assert stream.token_ids == continuation([USER, *image_values(90), 7, BOT], 3)


def test_an_image_is_encoded_once(open_session: Open) -> None:
    trace = Trace()
    session = open_session(trace=trace)
    first = session.encode(picture(50))
    assert first.wait()
    again = session.encode(picture(50))
    again.wait()
    other = session.encode(picture(51))
    other.wait()
    assert (first.was_cached, again.was_cached, other.was_cached) == (False, True, False)
    assert (first.key == again.key, first.key == other.key) == (True, False)
    assert again.tokens is first.tokens
    assert sum(event["name"] == "connector" for event in trace.events) == 2


def test_the_image_cache_has_the_size_that_is_asked_for(open_session: Open) -> None:
    for megabytes, cached in ((0, False), (1, True)):
        session = open_session(image_cache_mb=megabytes)
        session.encode(picture(1)).wait()
        again = session.encode(picture(1))
        again.wait()
        assert again.was_cached == cached


def test_metrics_tell_a_cold_image_from_one_at_hand(open_session: Open) -> None:
    session = open_session({"chain": REPLY})
    cold = session.chat([user(picture(1), "w7")])
    list(cold)
    known = session.chat([user(picture(1), "w9")])
    list(known)
    text = session.chat([user("w9")])
    list(text)
    ready = session.encode(picture(2))
    ready.wait()
    warm = session.chat([user(ready, "w9")])
    list(warm)
    assert [stream.metrics.image_was_cached for stream in (cold, known, text, warm)] == [False, True, False, True]
    again = session.chat([user(ready, "w9")])
    list(again)
    assert cold.metrics.vision_ms > 0
    assert known.metrics.vision_ms == 0
    # The time of an encoding is counted in the first answer that uses it.
    assert (warm.metrics.vision_ms, again.metrics.vision_ms) == (ready.vision_ms, 0)


def test_an_answer_cancelled_before_its_image_is_ready_leaves_its_time_to_the_next(
    open_session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, load = threading.Event(), encoding.load_image

    def held(*arguments: Any) -> Any:
        assert go.wait(20)
        return load(*arguments)

    monkeypatch.setattr(encoding, "load_image", held)
    session = open_session({"chain": REPLY})
    image = session.encode(picture(2))
    hasty = session.chat([user(image, "w7")])
    hasty.cancel()
    assert list(hasty) == []
    go.set()
    patient = session.chat([user(image, "w7")])
    assert "".join(patient)
    assert hasty.metrics.vision_ms == 0
    assert patient.metrics.vision_ms == image.vision_ms > 0


def test_more_threads_than_a_machine_can_use_are_refused(open_session: Open) -> None:
    with pytest.raises(UsageError, match="threads is 3000000000"):
        open_session(threads=3_000_000_000)


def test_metrics_of_an_answer(open_session: Open) -> None:
    session = open_session({"chain": REPLY}, target="fake-cpu")
    stream = session.chat([user("w7 w8")])
    with pytest.raises(UsageError, match="read the stream to its end"):
        _ = stream.metrics
    assert list(stream) == ["w10", "w11", "w12", "w13", "w14"]
    metrics = stream.metrics
    assert (metrics.prompt_tokens, metrics.new_tokens, metrics.tiles, metrics.image_tokens) == (4, 5, 0, 0)
    assert (metrics.stop_reason, metrics.backend_requested, metrics.backend_actual) == (
        "stop_token",
        "fake-cpu",
        "fake-cpu (fake)",
    )
    assert metrics.load_ms > 0
    assert metrics.ttft_ms > 0
    assert metrics.prefill_tok_s > 0
    assert metrics.decode_tok_s > 0
    assert 0 < metrics.overhead_ms_per_token <= 1000 / metrics.decode_tok_s
    assert metrics.peak_rss_mb is not None
    assert metrics.peak_rss_mb > 1


def test_decode_time_holds_the_text_work_and_not_the_readers(open_session: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only this test turns: 10 s for the text of each token, 1,000 s whenever the reader thinks."""
    now = [0.0]
    monkeypatch.setattr("pocketvlm.runtime.answer.time", SimpleNamespace(perf_counter=lambda: now[0]))
    push = StreamDecoder.push

    def slow_push(self: StreamDecoder, token: int) -> str:
        now[0] += 10
        return push(self, token)

    monkeypatch.setattr(StreamDecoder, "push", slow_push)
    stream = open_session({"chain": REPLY}).chat([user("w7 w8")])
    for _ in stream:
        now[0] += 1000
    # Five tokens and the stop token: five steps, the text of the first token is the prefill's.
    assert stream.metrics.new_tokens == 5
    assert stream.metrics.decode_tok_s == pytest.approx(5 / 40)
    assert stream.metrics.overhead_ms_per_token == pytest.approx(40_000 / 5, rel=0.01)
    assert stream.metrics.ttft_ms == pytest.approx(10_000)


def test_stop_reasons(open_session: Open) -> None:
    session = open_session({"chain": REPLY})

    def answer(**options: Any) -> tuple[str, str]:
        stream = session.chat([user("w7")], **options)
        assert "".join(stream) == stream.text
        return stream.text, stream.metrics.stop_reason

    assert answer() == ("w10w11w12w13w14", "stop_token")
    assert answer(max_new_tokens=2) == ("w10w11", "max_new_tokens")
    assert answer(stop=["1w12"]) == ("w10w1", "stop_string")
    assert answer(stop=["w14?"]) == ("w10w11w12w13w14", "stop_token")


def test_generation_ends_where_the_cache_does(open_session: Open) -> None:
    endless = {BOT: 10, 10: 10}
    stream = open_session({"chain": endless}, max_length=10).chat([user("w7")])
    list(stream)
    # Seven tokens fit after the prompt's three; one more needs no place, because nothing follows it.
    assert stream.token_ids == (10,) * 8
    assert stream.metrics.stop_reason == "context_full"
    whole = open_session({"chain": endless}).chat([user("w7")])
    list(whole)
    assert len(whole.token_ids) == 64 - 3 + 1


@pytest.mark.parametrize(("length", "over"), [(8, 1), (7, 2), (2, 7)])
def test_a_prompt_that_is_too_long_says_by_how_much(open_session: Open, length: int, over: int) -> None:
    trace = Trace()
    session = open_session({"stall": {"decoder": [7]}}, max_length=length, trace=trace)
    stream = session.chat([user(picture(255, 8, 4), "w7")])
    with pytest.raises(ContextLengthError, match=rf"{over} tokens too long: 9 \(6 of them for images\)"):
        list(stream)
    assert not [event for event in trace.events if event["name"] in ("prefill", "decode")]
    with pytest.raises(UsageError):
        _ = stream.metrics


def test_a_prompt_that_just_fits_is_answered(open_session: Open) -> None:
    """The last position of the prompt gives the first token; each further one takes a place."""
    for room in (9, 10):
        stream = open_session(max_length=room).chat([user(picture(255, 8, 4), "w7")])
        list(stream)
        assert (len(stream.token_ids), stream.metrics.prompt_tokens) == (room - 8, 9)


def test_turns_reuse_what_the_cache_holds(open_session: Open) -> None:
    trace = Trace()
    session = open_session({"chain": REPLY}, trace=trace)
    image = session.encode(picture(200))
    first = [user(image, "w7")]
    list(session.chat(first))
    second = [*first, {"role": "assistant", "content": "w10 w11 w12 w13 w14"}, user("w8")]
    stream = session.chat(second, max_new_tokens=4)
    list(stream)
    # <user> image image w7 <bot> w10 ... w14 are there; <end> <user> w8 <bot> are new.
    assert (stream.metrics.prompt_tokens, stream.metrics.kv_prefix_reused) == (14, 10)
    values = [USER, *image_values(200), 7, BOT, 10, 11, 12, 13, 14, END, USER, 8, BOT]
    assert stream.token_ids == continuation(values, 4, REPLY)


def test_another_image_in_the_same_place_is_not_taken_for_the_first(open_session: Open) -> None:
    session = open_session()
    list(session.chat([user(picture(200), "w7")], max_new_tokens=3))
    stream = session.chat([user(picture(201), "w7")], max_new_tokens=3)
    list(stream)
    assert stream.metrics.kv_prefix_reused == 1
    assert stream.token_ids == continuation([USER, *image_values(201), 7, BOT], 3)


def test_the_same_question_again_computes_only_its_last_position(open_session: Open) -> None:
    session = open_session()
    first = session.chat([user(picture(9), "w7")], max_new_tokens=5)
    list(first)
    again = session.chat([user(picture(9), "w7")], max_new_tokens=5)
    list(again)
    assert again.token_ids == first.token_ids
    assert (again.metrics.prompt_tokens, again.metrics.kv_prefix_reused) == (5, 4)


def cancel_when_running(monkeypatch: pytest.MonkeyPatch, rule: str) -> threading.Event:
    """An event that is set when a script of that rule begins to stall."""
    stalled = threading.Event()
    stall = FakeSession._stall

    def watched(self: FakeSession, values: Any) -> None:
        if self._rule.__name__ == f"_{rule}" and np.isin(values, self._stall_on).any():
            stalled.set()
        stall(self, values)

    monkeypatch.setattr(FakeSession, "_stall", watched)
    return stalled


@pytest.mark.parametrize("where", ["prefill", "decode"])
def test_cancel_stops_the_run_in_progress_and_leaves_the_session_whole(
    open_session: Open, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    stalled = cancel_when_running(monkeypatch, "decoder")
    session = open_session({"chain": REPLY, "stall": {"decoder": [30.0 if where == "prefill" else 12.0]}})
    words = " ".join(f"w{index}" for index in range(20, 34)) if where == "prefill" else "w7"
    stream = session.chat([user(words)])

    def cancel() -> None:
        assert stalled.wait(20)
        stream.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    pieces = list(stream)
    thread.join()
    assert stream.metrics.stop_reason == "cancelled"
    assert pieces == ([] if where == "prefill" else ["w10", "w11", "w12"])
    # What was computed before is still of use, and right.
    follow = session.chat([user(words.replace("w30", "w31").replace("w7", "w7 w9"))], max_new_tokens=2)
    list(follow)
    ids = [int(word[1:]) for word in words.replace("w30", "w31").replace("w7", "w7 w9").split()]
    assert follow.token_ids == continuation([USER, *ids, BOT], 2, REPLY)
    assert follow.metrics.kv_prefix_reused == (8 if where == "prefill" else 2)


def test_cancel_between_two_pieces(open_session: Open) -> None:
    session = open_session({"chain": REPLY})
    stream = session.chat([user("w7")])
    assert next(stream) == "w10"
    stream.cancel()
    assert list(stream) == []
    assert (stream.metrics.stop_reason, stream.token_ids) == ("cancelled", (10,))
    assert list(session.chat([user("w7")]))[:2] == ["w10", "w11"]


def test_cancel_before_the_first_piece(open_session: Open) -> None:
    stream = open_session().chat([user(picture(3), "w7")])
    stream.cancel()
    assert list(stream) == []
    assert (stream.metrics.stop_reason, stream.metrics.new_tokens) == ("cancelled", 0)


def test_cancelling_an_answer_stops_the_images_that_it_began(open_session: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    stalled = cancel_when_running(monkeypatch, "mean")
    session = open_session({"stall": {"vision_encoder": [2.0]}}, overlap=False)
    stream = session.chat([user(picture(255), "w7")])

    def cancel() -> None:
        assert stalled.wait(20)
        stream.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    assert list(stream) == []
    thread.join()
    assert stream.metrics.stop_reason == "cancelled"
    assert session.encode(picture(0)).wait(20)


def test_a_cancelled_image_raises_where_it_is_used_and_the_next_is_encoded(
    open_session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalled = cancel_when_running(monkeypatch, "mean")
    session = open_session({"stall": {"connector": [3.0]}})
    image = session.encode(picture(255))
    waiting = session.encode(picture(1))
    assert stalled.wait(20)
    assert image.tile_plan.grid == (1, 1)
    assert not image.wait(0)
    waiting.cancel()
    image.cancel()
    for cancelled in (image, waiting):
        with pytest.raises(Cancelled):
            cancelled.wait(20)
        assert cancelled.done
        with pytest.raises(Cancelled):
            list(session.chat([user(cancelled, "w7")]))
    after = session.encode(picture(0))
    assert after.wait(20)
    after.cancel()
    np.testing.assert_array_equal(after.tokens, np.full((2, 4), 3))


def test_an_image_is_encoded_while_an_answer_is_read(open_session: Open) -> None:
    session = open_session({"chain": REPLY})
    stream = session.chat([user("w7")])
    next(stream)
    assert session.encode(picture(0)).wait(20)
    assert next(stream) == "w11"


def test_a_second_question_at_the_same_time_is_refused(open_session: Open) -> None:
    session = open_session({"chain": REPLY})
    stream = session.chat([user("w7")])
    next(stream)
    with pytest.raises(UsageError, match="still answering"):
        session.chat([user("w8")])
    assert next(stream) == "w11"
    stream.close()
    assert list(session.chat([user("w8")]))


def test_dropping_a_stream_ends_its_turn(open_session: Open) -> None:
    session = open_session({"chain": REPLY})
    gc.disable()
    try:
        for piece in session.chat([user("w7")]):
            assert piece == "w10"
            break
        stream = session.chat([user("w7")])
    finally:
        gc.enable()
    assert len(list(stream)) == 5


def test_an_answer_that_fails_ends_its_turn(open_session: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session({"chain": REPLY})
    list(session.chat([user("w7")]))

    def fail(self: object, inputs: object, sizes: object) -> None:
        raise EnvironmentFault("engine broke")

    rule = session._workshop.decoder._sessions["decode"]
    monkeypatch.setattr(rule, "_rule", fail.__get__(rule))
    with pytest.raises(EnvironmentFault, match="engine broke"):
        list(session.chat([user("w7 w8")]))
    monkeypatch.undo()
    stream = session.chat([user("w7 w8")])
    assert len(list(stream)) == 5
    assert stream.metrics.kv_prefix_reused == 2


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], PromptError),
        ([{"role": "wizard", "content": "w7"}], PromptError),
        ([user("")], PromptError),
        ([user(3, "w7")], ImageError),
        ([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "w7"}]}], ImageError),
        ([user(Path("/nowhere/missing.png"), "w7")], ImageError),
        ([user(b"not an image", "w7")], ImageError),
    ],
)
def test_bad_messages_are_refused_and_the_session_goes_on(open_session: Open, messages: Any, error: Any) -> None:
    session = open_session({"chain": REPLY})
    with pytest.raises(error):
        list(session.chat(messages))
    assert len(list(session.chat([user("w7")]))) == 5


@pytest.mark.parametrize(
    "options",
    [{"max_new_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"top_k": -2}, {"min_p": 2}, {"seed": -1}, {"stop": [""]}],
)
def test_bad_options_are_refused_and_take_no_turn(open_session: Open, options: dict[str, Any]) -> None:
    session = open_session({"chain": REPLY})
    with pytest.raises((UsageError, PromptError)):
        session.chat([user("w7")], **options)
    assert len(list(session.chat([user("w7")]))) == 5


def test_the_checkpoints_sampling_defaults_are_used_and_can_be_replaced(open_session: Open) -> None:
    """The fake decoder's logits are 10 for one token and 0 for the 95 others."""
    hot = {"chain": {BOT: 10, 10: 11, 11: 10}, "generation": GenerationSpec(temperature=50.0)}
    session = open_session(hot)

    def answer(**options: Any) -> tuple[int, ...]:
        stream = session.chat([user("w7")], max_new_tokens=12, **options)
        list(stream)
        return stream.token_ids

    assert answer(seed=1) == answer(seed=1)
    assert answer(seed=1) != answer(seed=2)
    assert answer(temperature=0) == (10, 11) * 6
    cautious = open_session(hot | {"generation": GenerationSpec(temperature=50.0, min_p=0.9)})
    stream = cautious.chat([user("w7")], max_new_tokens=12)
    list(stream)
    assert stream.token_ids == (10, 11) * 6
    assert answer(seed=3, top_k=1) == (10, 11) * 6
    assert answer(seed=3, min_p=0.9) == (10, 11) * 6
    assert answer(seed=3, top_p=0.001) == (10, 11) * 6
    assert answer(temperature=0.01, seed=1)[:3] == (10, 11, 10)
    assert answer(temperature=0.01, seed=1, repetition_penalty=1e9)[:2] == (10, 11)
    assert answer(temperature=0.01, seed=1, repetition_penalty=1e9)[2] != 10


@pytest.mark.parametrize("policy", ["keep", "after_encode", "on_pressure"])
def test_release_policies(open_session: Open, monkeypatch: pytest.MonkeyPatch, policy: Any) -> None:
    share = [0.9]
    monkeypatch.setattr("pocketvlm.runtime.encoding.available_share", lambda: share[0])
    opened: list[str] = []
    open_graph = FakeEngine.open

    def watched(self: FakeEngine, path: Path, options: Any, threads: int | None) -> FakeSession:
        opened.append(path.name)
        return open_graph(self, path, options, threads)

    monkeypatch.setattr(FakeEngine, "open", watched)
    session = open_session({"chain": REPLY}, release=policy)
    assert opened.count("vision.onnx") == 1
    for value in (1, 2):
        list(session.chat([user(picture(value), "w7")]))
    assert opened.count("vision.onnx") == {"keep": 1, "after_encode": 2, "on_pressure": 1}[policy]
    share[0] = 0.01
    for value in (3, 4, 4):
        stream = session.chat([user(picture(value), "w7")])
        list(stream)
    assert opened.count("vision.onnx") == {"keep": 1, "after_encode": 4, "on_pressure": 2}[policy]
    if policy == "keep":
        assert stream.metrics.rss_before_release_mb is None
    else:
        assert stream.metrics.rss_before_release_mb is not None
        assert stream.metrics.rss_after_release_mb is not None


def test_vision_can_be_released_by_hand(open_session: Open) -> None:
    session = open_session()
    release = session.release_vision()
    assert release is not None
    assert release.before_mb is not None
    assert session.release_vision() is None
    assert session.encode(picture(0)).wait(20)


def test_close_cancels_everything_from_another_thread(open_session: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    stalled = cancel_when_running(monkeypatch, "decoder")
    session = open_session({"chain": REPLY, "stall": {"decoder": [12.0], "patch_embed": [0.0]}})
    image = session.encode(picture(0))
    stream = session.chat([user("w7")])

    def close() -> None:
        assert stalled.wait(20)
        session.close()

    threads = [threading.Thread(target=close) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert list(stream) == ["w10", "w11", "w12"]
    for thread in threads:
        thread.join()
    assert stream.metrics.stop_reason == "cancelled"
    with pytest.raises(Cancelled):
        image.wait(20)
    with pytest.raises(UsageError, match="closed"):
        session.encode(picture(1))
    with pytest.raises(UsageError, match="closed"):
        session.chat([user("w7")])


def test_a_stream_of_a_closed_session_just_ends(open_session: Open) -> None:
    session = open_session({"chain": REPLY})
    stream = session.chat([user("w7")])
    next(stream)
    session.close()
    session.close()
    assert list(stream) == []
    assert stream.metrics.stop_reason == "cancelled"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"threads": 0}, "threads"),
        ({"vision_batch": 0}, "vision_batch"),
        ({"max_length": 0}, "max_length"),
        ({"release": "sometimes"}, "release"),
        ({"image_cache_mb": -1}, "image_cache_mb"),
        ({"target": "npu"}, "no variant"),
    ],
)
def test_bad_session_options(open_session: Open, options: dict[str, Any], error: str) -> None:
    with pytest.raises(UsageError, match=error):
        open_session(**options)


def test_a_batch_that_the_graph_cannot_take_is_refused(open_session: Open) -> None:
    with pytest.raises(UsageError, match="batches of 4"):
        open_session({"batch": 4}, vision_batch=3)
    assert open_session({"batch": 4}, vision_batch=8).encode(picture(0)).wait(20)


def test_a_damaged_graph_is_found_before_it_is_loaded(bundle_at: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    directory = bundle_at()
    path = directory / "v/vision.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    monkeypatch.setattr(FakeEngine, "open", lambda *_: pytest.fail("an engine was opened"))
    with pytest.raises(BundleError, match="sha256"):
        VlmSession.open(directory)


def test_the_columns_protocol_with_fixed_chunks_gives_the_same_answer(open_session: Open, contract: Any) -> None:
    messages = [user(picture(255, 12, 12), "w7 w8 w9")]
    answers = set()
    for script in (
        {},
        {"cache": contract.kv_spec(protocol="columns")},
        {"cache": contract.kv_spec(protocol="columns"), "chunk": 8},
    ):
        stream = open_session(script).chat(messages, max_new_tokens=6)
        list(stream)
        answers.add(stream.token_ids)
    assert len(answers) == 1


def test_encoded_image_is_exported(open_session: Open) -> None:
    image = open_session().encode(picture(0))
    assert isinstance(image, EncodedImage)
    assert image.tile_plan.to_json()["image_tokens"] == 2
    assert image.wait(20)
    assert image.done
