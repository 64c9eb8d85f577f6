"""The rate-limit fields, read back as a client reads them."""

from __future__ import annotations

import re
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.limits.fields import duration, rate_limit_fields
from proxy.limits.store import RateStanding, Standing

STEADY = settings(derandomize=True, max_examples=200, deadline=None)

# RFC 8941: a List of Strings with Integer parameters, as the draft profiles it.
MEMBER = re.compile(rb'"([ -!#-\[\]-~]*)"((?:;[a-z]=\d{1,15})+)')


def members(value: bytes) -> list[tuple[bytes, dict[bytes, int]]]:
    """Parse a structured field, refusing what a strict parser would refuse."""
    parsed = []
    for member in value.split(b", "):
        match = MEMBER.fullmatch(member)
        assert match is not None, member
        parameters = (parameter.split(b"=") for parameter in match[2].split(b";")[1:])
        parsed.append((match[1], {name: int(number) for name, number in parameters}))
    return parsed


def test_fields_of_two_rates() -> None:
    """Both rates stand in the IETF's fields, the tighter one in the SDKs' three."""
    standing = Standing(
        (RateStanding("60-per-10s", 60, 10.0, 57, 0.5), RateStanding("20000-per-1d", 20_000, 86_400.0, 12, 86_348.16))
    )
    assert rate_limit_fields(standing) == (
        (b"RateLimit-Policy", b'"60-per-10s";q=60;w=10, "20000-per-1d";q=20000;w=86400'),
        (b"RateLimit", b'"60-per-10s";r=57;t=1, "20000-per-1d";r=12;t=86349'),
        (b"x-ratelimit-limit-requests", b"20000"),
        (b"x-ratelimit-remaining-requests", b"12"),
        (b"x-ratelimit-reset-requests", b"23h59m8.16s"),
    )


def test_fields_without_rates() -> None:
    """A plan without rates shows no fields."""
    assert rate_limit_fields(Standing()) == ()


def test_fields_nothing_remaining() -> None:
    """With nothing remaining, `t` is when the next request fits, so `Retry-After` never lies before it."""
    standing = Standing((RateStanding("60-per-1m", 60, 60.0, 0, 59.25),))
    fields = dict(rate_limit_fields(standing))
    assert fields[b"RateLimit"] == b'"60-per-1m";r=0;t=1'
    assert fields[b"x-ratelimit-reset-requests"] == b"59.25s"


@pytest.mark.parametrize(
    ("window_s", "window"),
    [(0.000_25, 1), (0.5, 1), (1.0, 1), (1.5, 2), (10.0, 10), (0.1 + 0.2, 1), (86_400.0, 86_400)],
)
def test_fields_fraction_of_a_second(window_s: float, window: int) -> None:
    """A window that is no whole number of seconds is shown longer, never shorter, and never as none."""
    standing = Standing((RateStanding("5", 5, window_s, 5, 0.0),))
    assert members(dict(rate_limit_fields(standing))[b"RateLimit-Policy"]) == [(b"5", {b"q": 5, b"w": window})]


@pytest.mark.parametrize(
    ("rates", "tightest"),
    [
        pytest.param([(60, 3, 1.0), (500, 4, 9.0)], 60, id="least remaining first"),
        pytest.param([(500, 4, 9.0), (60, 3, 1.0)], 60, id="least remaining last"),
        pytest.param([(60, 0, 1.0), (500, 0, 9.0)], 500, id="equal, longer reset last"),
        pytest.param([(500, 0, 9.0), (60, 0, 1.0)], 500, id="equal, longer reset first"),
        pytest.param([(1, 1, 0.0), (2, 1, 0.0), (3, 2, 0.0)], 1, id="all equal"),
    ],
)
def test_fields_tightest(rates: list[tuple[int, int, float]], tightest: int) -> None:
    """The SDKs' fields tell of the rate with the least remaining, of equals the one that takes longest."""
    standing = Standing(tuple(RateStanding(str(q), q, 10.0, remaining, reset_s) for q, remaining, reset_s in rates))
    assert dict(rate_limit_fields(standing))[b"x-ratelimit-limit-requests"] == b"%d" % tightest


RATES = st.builds(
    lambda quota, window_s, part: RateStanding(
        f"{quota}-per-{window_s}s", quota, window_s, int(quota * (1 - part)), window_s * part
    ),
    st.integers(1, 10**17),
    st.floats(1e-6, 1e9),
    st.floats(0, 1),
)


@given(st.lists(RATES, min_size=1, max_size=4))
@STEADY
def test_fields_are_structured(rates: list[RateStanding]) -> None:
    """Whatever the numbers, a strict parser reads the fields, and they promise nothing that is not there."""
    fields = dict(rate_limit_fields(Standing(tuple(rates))))
    policies, current = members(fields[b"RateLimit-Policy"]), members(fields[b"RateLimit"])
    assert [name for name, _ in policies] == [name for name, _ in current] == [rate.name.encode() for rate in rates]
    for rate, (_, policy), (_, now) in zip(rates, policies, current, strict=True):
        assert policy[b"w"] >= max(1, rate.window_s - 1e-6)
        assert policy[b"q"] <= rate.quota
        assert now[b"r"] <= rate.remaining
        assert now[b"t"] <= ceil(rate.reset_s)
        assert now[b"t"] >= rate.reset_s - 1e-6 or rate.remaining == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, b"0s"),
        (0.000_001, b"1ms"),
        (0.12, b"120ms"),
        (0.120_001, b"121ms"),
        (0.999_5, b"1s"),
        (1.0, b"1s"),
        (8.64, b"8.64s"),
        (8.005, b"8.005s"),
        (10.0, b"10s"),
        (59.999_9, b"1m0s"),
        (60.0, b"1m0s"),
        (72.5, b"1m12.5s"),
        (360.0, b"6m0s"),
        (3_600.0, b"1h0m0s"),
        (86_400.0, b"24h0m0s"),
    ],
)
def test_duration(seconds: float, text: bytes) -> None:
    """Times are worded as OpenAI words them, rounded up to the millisecond."""
    assert duration(seconds) == text


@given(st.integers(0, 10**13))
@STEADY
def test_duration_reads_back(microseconds: int) -> None:
    """A duration read back is the time it was made of, late by less than a millisecond, never early."""
    text = duration(microseconds / 1e6).decode()
    units = {"h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
    parts = re.findall(r"([\d.]+)(ms|[hms])", text)
    assert "".join(number + unit for number, unit in parts) == text
    ms = sum(round(float(number) * units[unit]) for number, unit in parts)
    assert 0 <= ms * 1_000 - microseconds < 1_000
