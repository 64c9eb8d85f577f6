"""What a request will probably take, foretold by what its worker has seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects import DIALECTS
from proxy.usage import Estimates, Figures, Meter
from proxy.usage.estimates import MAX_LEARNED
from proxy.usage.outputs import KEPT, RecentOutputs
from proxy.usage.prices import Tokens
from tests.usage.test_meter import sse, text

MOST = 16_384


def meter(model: str | None = "m", *, body_bytes: int = 400, is_stream: bool | None = True) -> Meter:
    read = Meter(DIALECTS["openai"], model=model, body_bytes=body_bytes)
    read.begin(200, is_stream=is_stream)
    return read


def teach(estimates: Estimates, output: int | None, *, model: str | None = "m", is_whole: bool = True) -> None:
    """One exchange whose vendor tells its output, or which has 48 bytes of text and tells nothing."""
    read = meter(model)
    read.feed(sse(text("hello world " * 4)))
    if output is not None:
        read.feed(sse({"choices": [], "usage": {"prompt_tokens": 200, "completion_tokens": output}}))
    estimates.figures(read, "up", is_whole=is_whole)


def expected(estimates: Estimates, model: str | None = "m", *, upstream: str = "up", most: int = MOST) -> Tokens:
    return estimates.expected(upstream, model, body_bytes=400, most_output=most)


def test_expected_before_anything_was_learned() -> None:
    """A quarter of a token for each byte, and as much output as may be reserved."""
    assert expected(Estimates()) == Tokens(100, MOST)


def test_expected_by_the_model() -> None:
    """The model's ratio, and the 95th percentile of its outputs: one long answer in a hundred does not count."""
    estimates = Estimates()
    for number in range(60):
        teach(estimates, 9000 if number == 5 else 100 + number)
    tokens = expected(estimates)
    assert abs(tokens.input - 200) <= 2
    assert tokens.output == 100 + 57
    assert expected(estimates, most=50).output == 50


def test_expected_by_the_upstream() -> None:
    """A model of which nothing is known yet is expected to write as its upstream's others do, embeddings left out."""
    estimates = Estimates()
    for _ in range(30):
        teach(estimates, 300)
        teach(estimates, 0, model="embeds")
    assert expected(estimates, "new") == Tokens(100, 300)
    assert expected(estimates, None).output == 300
    assert expected(estimates, "embeds").output == 0
    assert expected(estimates, "new", upstream="other").output == MOST


def test_expected_of_others_by_an_odd_stream() -> None:
    """What a vendor makes up, or one user asks for, makes nobody else's request a hundred times as large."""
    estimates = Estimates()
    for _ in range(30):
        read = meter(body_bytes=32)
        read.feed(
            sse(
                text("hello world " * 4), {"choices": [], "usage": {"prompt_tokens": 10**9, "completion_tokens": 10**9}}
            )
        )
        estimates.figures(read, "up", is_whole=True)

    assert expected(estimates).input <= 8 * 400
    broken = meter()
    broken.feed(sse(text("hello world " * 4)))
    figures = estimates.figures(broken, "up", is_whole=False)
    assert figures.output <= 8 * 48


def test_expected_of_others_by_a_server_of_the_client() -> None:
    """A server that a client chose teaches nothing of a model of the same name on another one."""
    estimates = Estimates()
    read = Meter(DIALECTS["openai"], model="m", body_bytes=400, peer="mine.example")
    read.begin(200, is_stream=True)
    read.feed(sse({"choices": [], "usage": {"prompt_tokens": 3000, "completion_tokens": 5}}))
    estimates.figures(read, "up", is_whole=True)
    assert expected(estimates).input == 100
    assert estimates.expected("up", "m", body_bytes=400, most_output=MOST, peer="mine.example") == Tokens(3000, 5)


def test_made_up_models_do_not_push_out_one_in_use() -> None:
    """Names that a caller makes up take the place of each other, not of a model that others use meanwhile."""
    estimates = Estimates()
    for number in range(2 * MAX_LEARNED):
        teach(estimates, 10, model=f"m-{number}")
        if number % 100 == 0:
            teach(estimates, 10)
    assert expected(estimates).input > 100


def test_expected_by_streams_whose_vendor_tells_nothing() -> None:
    """Whole streams without usage teach what they were estimated at, which is what such streams are charged."""
    estimates = Estimates()
    teach(estimates, None)
    assert expected(estimates) == Tokens(100, 12)


@pytest.mark.parametrize("output", [None, 20])
def test_expected_learns_nothing_of_streams_that_broke_off(output: int | None) -> None:
    """How long an answer would have been is not known of one that its client left."""
    estimates = Estimates()
    teach(estimates, output, is_whole=False)
    assert expected(estimates) == Tokens(100, MOST)


def test_expected_learns_nothing_of_what_was_not_read() -> None:
    """An answer in a content coding, or JSON without usage, is charged without output, and is no example of any."""
    estimates = Estimates()
    for is_stream in (None, False):
        read = meter(is_stream=is_stream)
        read.feed(b'{"data": []}')
        assert estimates.figures(read, "up", is_whole=True).output == 0
    assert expected(estimates) == Tokens(100, MOST)


def test_so_far() -> None:
    """A running stream's figures are its text as an estimate, or running totals as they come; its end is unharmed."""
    estimates, read = Estimates(), meter()
    read.feed(sse(*[text("hello world " * 4)] * 10))
    assert estimates.so_far(read, "up") == Figures("estimated", "m", 100, 120)
    for total in (1, 2, 3, 4):
        read.feed(sse(text("x", usage={"prompt_tokens": 70, "completion_tokens": total})))
        assert estimates.so_far(read, "up") == Figures("estimated", "m", 70, total)
    assert expected(estimates) == Tokens(100, MOST)
    assert estimates.figures(read, "up", is_whole=True) == Figures("reported", "m", 70, 4)


def test_so_far_where_no_model_is_run() -> None:
    """What would be charged nothing in the end has taken nothing so far."""
    read = meter(None)
    read.feed(sse({"data": "x" * 1000}))
    assert Estimates().so_far(read, "up") == Figures("none")


def test_so_far_twice() -> None:
    """Looking again at a stream of which nothing more has come changes nothing, also where it tells its input alone."""
    estimates, read = Estimates(), meter()
    read.feed(sse(*[text("hello world " * 4, usage={"prompt_tokens": 70})] * 3, text("hello world " * 4)))
    first = estimates.so_far(read, "up")
    assert first.input == 70
    assert 44 <= first.output <= 48
    assert estimates.so_far(read, "up") == first


@given(pieces=st.lists(st.integers(0, 3), max_size=30))
def test_so_far_changes_nothing_of_the_end(pieces: list[int]) -> None:
    """However often a running stream is looked at, its figures in the end are those of one that was not."""
    events: list[dict[str, Any]] = [
        text("hello world " * 4),
        text("x" * 300),
        text("y", usage={"prompt_tokens": 7, "completion_tokens": 5}),
        text("", usage={"prompt_tokens": 7, "completion_tokens": 90}),
    ]
    looked, other, estimates = meter(), meter(), Estimates()
    for piece in pieces:
        looked.feed(sse(events[piece]))
        other.feed(sse(events[piece]))
        estimates.so_far(looked, "up")
    assert estimates.figures(looked, "up", is_whole=False) == Estimates().figures(other, "up", is_whole=False)


@given(pieces=st.lists(st.integers(0, 3), max_size=30))
def test_shown_changes_nothing(pieces: list[int]) -> None:
    """An onlooker sees what `so_far` would say, and leaves every figure, and what is learned, as without them."""
    events: list[dict[str, Any]] = [
        text("hello world " * 4),
        text("x" * 300),
        text("y", usage={"prompt_tokens": 7, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 3}}),
        text("", usage={"prompt_tokens": 7, "completion_tokens": 90}),
    ]
    looked, other, estimates, others = meter(), meter(), Estimates(), Estimates()
    for piece in pieces:
        looked.feed(sse(events[piece]))
        other.feed(sse(events[piece]))
        shown = estimates.shown(looked, "up")
        assert estimates.shown(looked, "up") == shown
        assert looked.text_bytes == other.text_bytes
        if looked.counts_so_far().output is not None:
            assert replace(shown, cached=0) == Figures("reported", "m", 7, looked.counts_so_far().output or 0)
    figures = estimates.figures(looked, "up", is_whole=True)
    assert figures == others.figures(other, "up", is_whole=True)
    assert estimates.shown(looked, "up") == figures
    assert expected(estimates) == expected(others)


def test_shown_of_the_last_event() -> None:
    """What a running stream's last event with usage says is seen, though it is taken for the bill at the end only."""
    estimates, read = Estimates(), meter()
    for total in (1, 2, 3, 4):
        read.feed(sse(text("x", usage={"prompt_tokens": 70, "completion_tokens": total})))
        assert estimates.shown(read, "up") == Figures("reported", "m", 70, total)
    assert read.counts.output == 2


def test_shown_where_no_model_is_run() -> None:
    """What would be charged nothing has taken nothing."""
    read = meter(None)
    read.feed(sse({"data": "x" * 1000}))
    assert Estimates().shown(read, "up") == Figures("none")


@given(outputs=st.lists(st.integers(0, 10**6), max_size=200))
def test_percentile(outputs: list[int]) -> None:
    """Of the last 64 outputs, at most one in twenty is larger, and it is one of them."""
    recent = RecentOutputs()
    for output in outputs:
        recent.add(output)
    found, last = recent.percentile(), outputs[-KEPT:]
    if not outputs:
        assert found is None
        return
    assert found in last
    assert found is not None
    assert 20 * sum(output > found for output in last) <= len(last)
    assert 20 * sum(output >= found for output in last) > len(last) or len(last) < 20
    recent.add(0)
    assert recent.percentile() in [*last, 0]
