"""What a user is told who reached a limit: which one, and when to come back, as `Retry-After` says it too."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dialects import openai
from proxy.errors import TooManyTicketsError, refusal
from proxy.limits import gcra, messages
from proxy.limits.gcra import Limit
from proxy.limits.quotas import TICKS_PER_S, limits_of
from proxy.model import Plan, Rate
from proxy.settings.units import MAX_DURATION_S

STEADY = settings(max_examples=200)
NOW = 12_345_678_900
DAY_S = 86_400.0

SIZES_S = {"d": 86_400, "h": 3_600, "min": 60, "s": 1}


def used_up(*rates: tuple[int, float, float]) -> str:
    """The message after so much of each rate was used: quota, window in seconds, requests (a part is paid back)."""
    limits = limits_of([Rate(quota, window_s) for quota, window_s, _ in rates])
    used = [int(requests * limit.window) for limit, (_, _, requests) in zip(limits, rates, strict=True)]
    tats = [NOW * limit.quota + parts for limit, parts in zip(limits, used, strict=True)]
    return messages.rate_limit_exceeded(limits, tats, NOW).message


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        pytest.param([(60, 10.0, 60)], "60 requests per 10 s used up; try again in 1 s.", id="a sixth of a second"),
        pytest.param([(60, 200.0, 60)], "60 requests per 200 s used up; try again in 4 s.", id="rounded up"),
        pytest.param([(4, 12.0, 4)], "4 requests per 12 s used up; try again in 3 s.", id="whole seconds"),
        pytest.param([(1, 1.0, 1)], "1 request per 1 s used up; try again in 1 s.", id="one request"),
        pytest.param([(1, 0.5, 1)], "1 request per 500 ms used up; try again in 1 s.", id="half a second"),
        pytest.param([(3, 1.5, 3)], "3 requests per 1500 ms used up; try again in 1 s.", id="a second and a half"),
        pytest.param([(9, 0.00025, 9)], "9 requests per 250 us used up; try again in 1 s.", id="microseconds"),
        pytest.param([(5, 60.0, 5)], "5 requests per 1 min used up; try again in 12 s.", id="a minute"),
        pytest.param([(1, 90.0, 1)], "1 request per 90 s used up; try again in 90 s.", id="a minute and a half"),
        pytest.param([(1, 119.0, 1)], "1 request per 119 s used up; try again in 119 s.", id="seconds alone"),
        pytest.param(
            [(1, 120.0, 1)], "1 request per 2 min used up; try again in 120 s (2 min).", id="from two minutes"
        ),
        pytest.param([(5, 3600.0, 5)], "5 requests per 1 h used up; try again in 720 s (12 min).", id="an hour"),
        pytest.param(
            [(3, DAY_S, 2.5)],
            "3 requests per 1 d used up; try again in 14400 s (4 h).",
            id="a day, partly paid back",
        ),
        pytest.param(
            [(1, 4 * DAY_S, 0.3)],
            "1 request per 4 d used up; try again in 103680 s (1 d 4 h 48 min).",
            id="larger units",
        ),
        pytest.param(
            [(1, 7384.0, 1)],
            "1 request per 7384 s used up; try again in 7384 s (2 h 3 min 4 s).",
            id="every unit",
        ),
        pytest.param(
            [(60, 10.0, 60), (20_000, DAY_S, 20_000)],
            "20000 requests per 1 d used up; try again in 5 s.",
            id="two rates, the longer wait",
        ),
        pytest.param(
            [(20_000, DAY_S, 20_000), (60, 10.0, 60)],
            "20000 requests per 1 d used up; try again in 5 s.",
            id="two rates, the other way round",
        ),
        pytest.param(
            [(60, 10.0, 60), (20_000, DAY_S, 19_999)],
            "60 requests per 10 s used up; try again in 1 s.",
            id="two rates, one of them used up",
        ),
        pytest.param(
            [(1, 10.0, 1), (2, 20.0, 2)], "1 request per 10 s used up; try again in 10 s.", id="two rates, equal waits"
        ),
    ],
)
def test_rate_limit_exceeded(rates: list[tuple[int, float, float]], message: str) -> None:
    """The message names the rate that makes the user wait longest, and that wait."""
    assert used_up(*rates) == message


RATES = st.builds(Limit, st.integers(1, 999_999_999), st.integers(1, round(MAX_DURATION_S * TICKS_PER_S)))


@given(st.lists(st.tuples(RATES, st.floats(0.0, 1.0)), min_size=1, max_size=3))
@STEADY
def test_rate_limit_exceeded_agrees_with_retry_after(rates: list[tuple[Limit, float]]) -> None:
    """The message, both of its spellings of the wait, and `Retry-After` say the same; who obeys is admitted."""
    limits = [limit for limit, _ in rates]
    # At least one is used up.
    used = [limit.capacity - round(limit.window * paid) for limit, paid in rates]
    used[0] = max(used[0], limits[0].most_before + 1)
    tats = [NOW * limit.quota + parts for limit, parts in zip(limits, used, strict=True)]

    error = messages.rate_limit_exceeded(limits, tats, NOW)

    answer = refusal(error, openai.OpenAI())
    wait_s = int(dict(answer.fields)[b"Retry-After"])
    found = re.fullmatch(
        r"(\d+) requests? per (\d+) (\w+) used up; try again in (\d+) s(?: \((.+)\))?\.", error.message
    )
    assert found is not None
    assert int(found[4]) == wait_s
    if found[5] is None:
        assert wait_s < 120
    else:
        parts = re.findall(r"(\d+) (\w+)", found[5])
        assert sum(int(count) * SIZES_S[unit] for count, unit in parts) == wait_s
    assert error.message.encode() in answer.body
    assert gcra.charge(limits, tats, NOW + wait_s * TICKS_PER_S) is not None


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        pytest.param(8, "All of your 8 streams at a time are in use; try again when one has ended.", id="several"),
        pytest.param(1, "Your 1 stream at a time is in use; try again when it has ended.", id="one"),
    ],
)
def test_too_many_streams(streams: int, message: str) -> None:
    """The message names the number of streams, and promises no time: nobody knows when a stream ends."""
    error = messages.too_many_streams(Plan("p", concurrent_streams=streams))

    assert error.message == message
    assert dict(refusal(error, openai.OpenAI()).fields)[b"Retry-After"] == b"1"


@pytest.mark.parametrize(
    ("error", "message", "retry_after"),
    [
        pytest.param(
            messages.too_many_tickets(56.2),
            "All of your 32 tickets at a time are open; use one, or try again in 57 s.",
            b"57",
            id="their number",
        ),
        pytest.param(
            messages.too_large_tickets(0.000_001),
            "Your open tickets may hold 32 MiB at a time; use one, or try again in 1 s.",
            b"1",
            id="their bytes",
        ),
        pytest.param(
            messages.too_many_ticket_bodies(8),
            "All of your 8 ticket bodies at a time are on their way; try again when one has arrived.",
            b"1",
            id="their bodies",
        ),
    ],
)
def test_too_many_tickets(error: TooManyTicketsError, message: str, retry_after: bytes) -> None:
    """Each of the three bounds on tickets is named, and the wait where it is known."""
    assert error.message == message
    assert dict(refusal(error, openai.OpenAI()).fields)[b"Retry-After"] == retry_after
