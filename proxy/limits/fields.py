"""How a user stands, as response fields: the IETF's structured ones and those that the vendors' SDKs know.

`RateLimit-Policy` and `RateLimit` follow draft-ietf-httpapi-ratelimit-headers (2025-09-23), one list member a rate;
`x-ratelimit-{limit,remaining,reset}-requests` follow OpenAI and tell of the tightest rate only, for they can hold one.

Readings of the draft where it leaves room:

1. `w` is a whole number of seconds of at least 1. A window that is not is rounded up and `q` left as it is: this
   promises less than there is, never more. The policy's name has the true window.
2. `t` is when the quota is whole again; with nothing remaining it is when the next request fits. The second is the
   time that `Retry-After` names, and the draft wants that never to lie before `t`.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.errors import Field
    from proxy.limits.store import RateStanding, Standing

# RFC 8941 §3.3.1: an Integer has at most fifteen digits.
_MAX_INTEGER = 999_999_999_999_999


class _Wording(NamedTuple):
    """What of a plan's fields is the same for all its requests; `limits` goes by rate."""

    policy: Field
    rate_limit: bytes
    limits: tuple[Field, ...]


def rate_limit_fields(standing: Standing) -> tuple[Field, ...]:
    """Make the rate-limit fields of an authenticated answer; none where the plan has no rates.

    Runs on every request: what depends on the plan alone is made once and kept (for a bounded number of plans).
    """
    rates = standing.rates
    if not rates:
        return ()
    wording = _wording(tuple([(rate.name, rate.quota, rate.window_s) for rate in rates]))
    told: list[int] = []
    for rate in rates:
        told += (min(rate.remaining, _MAX_INTEGER), _seconds_until_useful(rate))
    tightest = _tightest(rates) if len(rates) > 1 else 0
    rate = rates[tightest]
    return (
        wording.policy,
        (b"RateLimit", wording.rate_limit % tuple(told)),
        wording.limits[tightest],
        (b"x-ratelimit-remaining-requests", b"%d" % rate.remaining),
        (b"x-ratelimit-reset-requests", duration(rate.reset_s)),
    )


def duration(seconds: float) -> bytes:
    """Word a time as OpenAI does (`120ms`, `1s`, `8.64s`, `6m0s`, `24h0m0s`), rounded up to the millisecond.

    The grammar is that of Go's `time.Duration`, which has nothing larger than hours.
    """
    # Through microseconds, in which the stores count: 0.12 s as a float is a little more than 120 ms, and is 120 ms.
    ms = -(-int(seconds * 1_000_000 + 0.5) // 1_000)
    whole_s, thousandths = divmod(ms, 1_000)
    if whole_s == 0 and thousandths:
        return b"%dms" % thousandths
    minutes, whole_s = divmod(whole_s, 60)
    text = (b"%d.%03d" % (whole_s, thousandths)).rstrip(b"0") if thousandths else b"%d" % whole_s
    if not minutes:
        return text + b"s"
    hours, minutes = divmod(minutes, 60)
    return b"%dh%dm%bs" % (hours, minutes, text) if hours else b"%dm%bs" % (minutes, text)


def _tightest(rates: Sequence[RateStanding]) -> int:
    """Which rate refuses first: the one with the least remaining, of equals the one that takes longest to recover."""
    tightest = 0
    for index in range(1, len(rates)):
        rate, best = rates[index], rates[tightest]
        if rate.remaining < best.remaining or (rate.remaining == best.remaining and rate.reset_s > best.reset_s):
            tightest = index
    return tightest


def _seconds_until_useful(rate: RateStanding) -> int:
    seconds = rate.reset_s
    if rate.remaining == 0:
        # Of a whole quota, all but one request may still be missing when the next one fits.
        seconds -= rate.window_s * (rate.quota - 1) / rate.quota
    # As in `duration`; `round` and `ceil` are slower, and this is for every request.
    return min(max(0, -(-int(seconds * 1_000_000 + 0.5) // 1_000_000)), _MAX_INTEGER)


@lru_cache(maxsize=256)  # plans come from the configuration, of which reloads may leave several versions
def _wording(policies: tuple[tuple[str, int, float], ...]) -> _Wording:
    quoted = [(b'"' + name.encode("ascii") + b'"', quota, window_s) for name, quota, window_s in policies]
    policy = b", ".join(
        b"%b;q=%d;w=%d" % (name, min(quota, _MAX_INTEGER), max(1, ceil(round(window_s, 6))))
        for name, quota, window_s in quoted
    )
    return _Wording(
        (b"RateLimit-Policy", policy),
        b", ".join(name.replace(b"%", b"%%") + b";r=%d;t=%d" for name, _, _ in quoted),
        tuple((b"x-ratelimit-limit-requests", b"%d" % quota) for _, quota, _ in quoted),
    )
