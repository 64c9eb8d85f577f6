"""The rate-limit fields, read back as a client reads them."""

from __future__ import annotations

import re
from fractions import Fraction
from math import ceil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.limits import gcra
from proxy.limits.gcra import Limit
from proxy.limits.memory.store import MemoryStore
from proxy.limits.periods import Period
from proxy.limits.quotas import Quotas, limits_of, quotas_of
from proxy.limits.rate_limit_fields import duration, rate_limit_fields
from proxy.limits.store import RateStatus
from proxy.limits.token_limits import token_limits_of
from proxy.limits.token_status import TokenStatus
from proxy.model import Amounts, Budget, Plan, Principal, Rate
from proxy.settings.units import MAX_DURATION_S

STEADY = settings(max_examples=200)

# RFC 8941: a List of Strings with Integer parameters, as the draft profiles it.
MEMBER = re.compile(r'"([ -!#-\[\]-~]*)"((?:;[a-z]=\d{1,15})+)(;qu="tokens")?')


def members(value: str) -> list[tuple[str, dict[str, int]]]:
    """Parse a structured field, refusing what a strict parser would refuse."""
    parsed = []
    for member in value.split(", "):
        match = MEMBER.fullmatch(member)
        assert match is not None, member
        parameters = (parameter.split("=") for parameter in match[2].split(";")[1:])
        parsed.append((match[1], {name: int(number) for name, number in parameters}))
    return parsed


NOW = 12_345_678_900


def standing(*rates: tuple[int, float, float]) -> RateStatus:
    """How somebody stands who has used so many requests of each rate: quota, window in seconds, requests."""
    limits = limits_of([Rate(quota, window_s) for quota, window_s, _ in rates])
    requests = [used for _, _, used in rates]
    return standing_at(limits, [int(used * limit.window) for used, limit in zip(requests, limits, strict=True)])


def standing_at(limits: tuple[Limit, ...], used: list[int]) -> RateStatus:
    tats = tuple(NOW * limit.quota + parts for limit, parts in zip(limits, used, strict=True))
    return RateStatus(Quotas(limits), tats, NOW)


def test_fields_of_two_rates() -> None:
    """Both rates stand in the IETF's fields, the tighter one in the SDKs' three."""
    assert rate_limit_fields(standing((60, 10.0, 3), (20_000, 86_400.0, 19_988))) == (
        ("RateLimit-Policy", '"60-per-10s";q=60;w=10, "20000-per-1d";q=20000;w=86400'),
        ("RateLimit", '"60-per-10s";r=57;t=1, "20000-per-1d";r=12;t=86349'),
        ("x-ratelimit-limit-requests", "20000"),
        ("x-ratelimit-remaining-requests", "12"),
        ("x-ratelimit-reset-requests", "23h59m8.16s"),
    )


async def test_fields_as_clients_are_told() -> None:
    """What `docs/clients.md` says that the fields of `60/10s` are, they are: the table is read from there."""
    page = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
    rows = re.findall(
        r"^\| (\d+ \w+ just used|the same, 3 s later) \| `(.+)` \| `(.+)` \| `(.+)` \|$", page, re.MULTILINE
    )
    assert len(rows) == 4
    now_s = 1000.0
    store, used = MemoryStore(lambda: now_s), 0
    user = Principal("tests", "alice", Plan("default", (Rate(60, 10.0),)))
    for when, rate_limit, remaining, reset in rows:
        if when.startswith("the same"):
            now_s += 3
        else:
            for _ in range(int(when.split()[0]) - used):
                (await store.admit(user)).release()
                used += 1
        fields = dict(rate_limit_fields(store.standing(user)))
        assert fields["RateLimit"] == rate_limit
        assert fields["x-ratelimit-remaining-requests"] == remaining
        assert fields["x-ratelimit-reset-requests"] == reset


def test_fields_without_rates() -> None:
    """A plan without rates shows no fields."""
    assert rate_limit_fields(RateStatus()) == ()


def test_fields_nothing_remaining() -> None:
    """With nothing remaining, `t` is when the next request fits, so `Retry-After` never lies before it."""
    fields = dict(rate_limit_fields(standing((60, 60.0, 59.25))))
    assert fields["RateLimit"] == '"60-per-1m";r=0;t=1'
    assert fields["x-ratelimit-reset-requests"] == "59.25s"


@pytest.mark.parametrize(
    ("window_s", "window"),
    [(0.000_25, 1), (0.5, 1), (1.0, 1), (1.5, 2), (10.0, 10), (0.1 + 0.2, 1), (86_400.0, 86_400)],
)
def test_fields_fraction_of_a_second(window_s: float, window: int) -> None:
    """A window that is no whole number of seconds is shown longer, never shorter, and never as none."""
    ((_, policy),) = members(dict(rate_limit_fields(standing((5, window_s, 0))))["RateLimit-Policy"])
    assert policy == {"q": 5, "w": window}


@pytest.mark.parametrize(
    ("rates", "tightest"),
    [
        pytest.param([(60, 10.0, 57), (500, 90.0, 496)], 60, id="least remaining first"),
        pytest.param([(500, 90.0, 496), (60, 10.0, 57)], 60, id="least remaining last"),
        pytest.param([(60, 10.0, 60), (500, 90.0, 500)], 500, id="equal, longer reset last"),
        pytest.param([(500, 90.0, 500), (60, 10.0, 60)], 500, id="equal, longer reset first"),
        pytest.param([(2, 10.0, 1), (3, 7.5, 2), (9, 10.0, 1)], 2, id="all equal"),
        pytest.param([(3, 10.0, 0), (2, 7.5, 0), (4, 90.0, 0)], 2, id="unused"),
    ],
)
def test_fields_tightest(rates: list[tuple[int, float, float]], tightest: int) -> None:
    """The SDKs' fields tell of the rate with the least remaining, of equals the one that takes longest."""
    assert dict(rate_limit_fields(standing(*rates)))["x-ratelimit-limit-requests"] == str(tightest)


LIMITS = st.builds(Limit, st.integers(1, 10**9 - 1), st.integers(1, int(MAX_DURATION_S) * 1_000_000))
# Somewhat unused, up to used twice over, as it looks when the clock was set back; and right at the edges.
USED = st.one_of(st.floats(-0.5, 2), st.sampled_from([-1e-9, 0.0, 1e-9, 0.5, 1 - 1e-9, 1.0]))


@given(st.lists(st.tuples(LIMITS, USED), min_size=1, max_size=4))
@STEADY
def test_fields_are_true(rates: list[tuple[Limit, float]]) -> None:
    """Whatever the state, a strict parser reads the fields, and they say what the arithmetic of rates says."""
    limits = tuple(limit for limit, _ in rates)
    stands = standing_at(limits, [int(limit.capacity * part) for limit, part in rates])
    fields = dict(rate_limit_fields(stands))
    policies, current = members(fields["RateLimit-Policy"]), members(fields["RateLimit"])
    assert [name for name, _ in policies] == [name for name, _ in current] == list(stands.quotas.names)
    told = []
    for limit, tat, (_, policy), (_, now) in zip(limits, stands.tats, policies, current, strict=True):
        assert policy["w"] == ceil(Fraction(limit.window, 1_000_000))
        assert policy["q"] == limit.quota
        left, reset = gcra.standing(limit, tat, NOW)
        useful = reset if left else gcra.retry_after(limit, tat, NOW)
        assert now == {"r": left, "t": ceil(Fraction(useful, 1_000_000))}
        told.append((left, -reset, limit.quota))
    left, reset, quota = min(told, key=lambda rate: rate[:2])
    assert fields["x-ratelimit-limit-requests"] == str(quota)
    assert fields["x-ratelimit-remaining-requests"] == str(left)
    assert fields["x-ratelimit-reset-requests"] == duration(-reset)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (0.000_001, "1ms"),
        (0.12, "120ms"),
        (0.120_001, "121ms"),
        (0.999_5, "1s"),
        (1.0, "1s"),
        (8.64, "8.64s"),
        (8.005, "8.005s"),
        (10.0, "10s"),
        (59.999_9, "1m0s"),
        (60.0, "1m0s"),
        (72.5, "1m12.5s"),
        (360.0, "6m0s"),
        (3_600.0, "1h0m0s"),
        (86_400.0, "24h0m0s"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    """Times are worded as OpenAI words them, rounded up to the millisecond."""
    assert duration(round(seconds * 1_000_000)) == text


@given(st.integers(0, 10**13))
@STEADY
def test_duration_reads_back(microseconds: int) -> None:
    """A duration read back is the time it was made of, late by less than a millisecond, never early."""
    text = duration(microseconds)
    units = {"h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
    parts = re.findall(r"([\d.]+)(ms|[hms])", text)
    assert "".join(number + unit for number, unit in parts) == text
    ms = sum(round(float(number) * units[unit]) for number, unit in parts)
    assert 0 <= ms * 1_000 - microseconds < 1_000


HOUR_S = 3600
ALL_KINDS = Plan(
    "all",
    (Rate(60, 10.0),),
    token_rates=(Rate(100_000, 60.0),),
    budgets=(Budget("tokens", 2_000_000, "day"), Budget("usd", 50 * 10**9, "month"), Budget("tokens", 10**12, "month")),
)


def token_standing(
    plan: Plan, used: tuple[int, ...], spent: tuple[int, ...], held: int = 0, quotas: Quotas | None = None
) -> RateStatus:
    """How somebody stands who has used so many tokens of each rate and budget; each period ends in an hour."""
    limits = token_limits_of(plan)
    assert limits is not None
    tats = tuple(NOW * rate.quota + tokens * rate.window for rate, tokens in zip(limits.rates, used, strict=True))
    periods = tuple(Period(0, HOUR_S) for _ in limits.budgets)
    status = TokenStatus(limits, NOW, 0.0, tats, periods, spent, Amounts(held))
    quotas = quotas_of(plan.rates) if quotas is None else quotas
    return RateStatus(quotas, tuple(NOW * limit.quota for limit in quotas.limits), NOW, status)


def test_fields_of_tokens() -> None:
    """Token rates and token budgets have items with their unit beside the requests'; budgets in dollars have none."""
    assert rate_limit_fields(token_standing(ALL_KINDS, (40_000,), (1_990_000, 10**9, 5), held=3_000)) == (
        (
            "RateLimit-Policy",
            (
                '"60-per-10s";q=60;w=10, "100000-tokens-per-1m";q=100000;w=60;qu="tokens", '
                '"2000000-tokens-per-day";q=2000000;w=86400;qu="tokens", '
                '"1000000000000-tokens-per-month";q=1000000000000;w=2678400;qu="tokens"'
            ),
        ),
        (
            "RateLimit",
            (
                '"60-per-10s";r=60;t=0, "100000-tokens-per-1m";r=57000;t=24;qu="tokens", '
                '"2000000-tokens-per-day";r=7000;t=3600;qu="tokens", '
                '"1000000000000-tokens-per-month";r=999999996995;t=3600;qu="tokens"'
            ),
        ),
        ("x-ratelimit-limit-requests", "60"),
        ("x-ratelimit-remaining-requests", "60"),
        ("x-ratelimit-reset-requests", "0s"),
        ("x-ratelimit-limit-tokens", "2000000"),
        ("x-ratelimit-remaining-tokens", "7000"),
        ("x-ratelimit-reset-tokens", "1h0m0s"),
    )


def test_fields_of_tokens_alone() -> None:
    """A plan without rates of requests tells of its tokens; one with dollars alone tells nothing."""
    plan = Plan("p", token_rates=(Rate(1000, 10.0),))
    assert rate_limit_fields(token_standing(plan, (1_500,), ())) == (
        ("RateLimit-Policy", '"1000-tokens-per-10s";q=1000;w=10;qu="tokens"'),
        ("RateLimit", '"1000-tokens-per-10s";r=0;t=6;qu="tokens"'),
        ("x-ratelimit-limit-tokens", "1000"),
        ("x-ratelimit-remaining-tokens", "0"),
        ("x-ratelimit-reset-tokens", "15s"),
    )
    assert rate_limit_fields(token_standing(Plan("p", budgets=(Budget("usd", 5, "day"),)), (), (9,))) == ()


def test_fields_of_tokens_held() -> None:
    """Where nothing remains because it is reserved, a second is when to come again."""
    plan = Plan("p", token_rates=(Rate(1000, 10.0),))
    fields = dict(rate_limit_fields(token_standing(plan, (0,), (), held=1_000)))
    assert fields["RateLimit"] == '"1000-tokens-per-10s";r=0;t=1;qu="tokens"'


@given(
    used=st.integers(0, 10**13), spent=st.integers(0, 10**13), held=st.integers(0, 10**13), quota=st.integers(1, 10**9)
)
@STEADY
def test_fields_of_tokens_parse(used: int, spent: int, held: int, quota: int) -> None:
    """Whatever the state, debt included, a strict parser reads the fields, and nothing remaining is below zero."""
    plan = Plan("p", (Rate(3, 1.0),), token_rates=(Rate(quota, 60.0),), budgets=(Budget("tokens", 10**12, "day"),))
    fields = dict(rate_limit_fields(token_standing(plan, (used,), (spent,), held)))
    current = members(fields["RateLimit"])
    assert [name for name, _ in current] == [name for name, _ in members(fields["RateLimit-Policy"])]
    assert current[1][1]["r"] == max(0, quota - used - held)
    assert current[2][1]["r"] == max(0, 10**12 - spent - held)
    assert fields["x-ratelimit-remaining-tokens"] == str(min(told["r"] for _, told in current[1:]))
