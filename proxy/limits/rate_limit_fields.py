"""How a user stands, as response fields: the IETF's structured ones and those that the vendors' SDKs know.

`RateLimit-Policy` and `RateLimit` follow draft-ietf-httpapi-ratelimit-headers (2025-09-23), one list member a rate;
`x-ratelimit-{limit,remaining,reset}-requests` follow OpenAI and tell of the tightest rate only, for they can hold one.
Token rates and budgets in tokens have items of their own with `qu="tokens"`, and the tightest `x-ratelimit-…-tokens`.
What of them no request changes is in `quotas`. A quota has at most nine digits and a window at most a year (`settings`
says so), which fits an Integer of RFC 8941 §3.3.1.

Readings of the draft where it leaves room:

1. `w` is a whole number of seconds of at least 1. A window that is not is rounded up and `q` left as it is: this
   promises less than there is, never more. The policy's name has the true window.
2. `t` is when the quota is whole again; with nothing remaining it is when the next request fits. The second is the
   time that `Retry-After` names, and the draft wants that never to lie before `t`.
3. A budget's `t` is the end of its period, and its `w` the longest that one of its periods can be.
4. Tokens that are reserved for exchanges that run do not remain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multidict import istr

from proxy.limits.quotas import RATE_LIMIT_POLICY, TICKS_PER_S

if TYPE_CHECKING:
    from proxy.limits.store import RateStatus
    from proxy.limits.token_status import TokenStatus

# As aiohttp looks for them, see `quotas`.
_RATE_LIMIT: Final = istr("RateLimit")
_REMAINING_REQUESTS: Final = istr("x-ratelimit-remaining-requests")
_RESET_REQUESTS: Final = istr("x-ratelimit-reset-requests")
_REMAINING_TOKENS: Final = istr("x-ratelimit-remaining-tokens")
_RESET_TOKENS: Final = istr("x-ratelimit-reset-tokens")


def rate_limit_fields(standing: RateStatus) -> tuple[tuple[str, str], ...]:
    """Make the rate-limit fields of an authenticated answer, as aiohttp takes them; none where the plan has no rates.

    The tightest rate is the one that refuses first: with the least remaining, of equals the one that takes longest to
    recover. Runs on every request, so all rates are gone through once, with `gcra.standing` and `gcra.retry_after`
    written out: a test holds them together.
    """
    quotas, now = standing.quotas, standing.at
    limits, tats = quotas.limits, standing.tats
    if not limits:
        return () if standing.tokens is None else _with_tokens((), standing.tokens)
    told: tuple[int, ...] = ()
    tightest, least, longest = 0, limits[0].quota, 0
    for index, limit in enumerate(limits):
        used = tats[index] - now * limit.quota
        left = (limit.capacity - used) // limit.window
        reset = useful = -(-used // limit.quota)
        if left <= 0:
            left, useful = 0, -((limit.most_before - used) // limit.quota)
        elif used <= 0:
            left, reset, useful = limit.quota, 0, 0
        told += (left, -(-useful // TICKS_PER_S))
        if left < least or (left == least and reset > longest):
            tightest, least, longest = index, left, reset
    fields = (
        quotas.policy,
        (_RATE_LIMIT, quotas.rate_limit % told),
        quotas.counts[tightest],
        (_REMAINING_REQUESTS, str(least)),
        (_RESET_REQUESTS, duration(longest)),
    )
    return fields if standing.tokens is None else _with_tokens(fields, standing.tokens)


def _with_tokens(fields: tuple[tuple[str, str], ...], status: TokenStatus) -> tuple[tuple[str, str], ...]:
    """Add what is told of token rates and budgets; the first two of the fields, if there are any, are the IETF's."""
    limits, counts = status.limits, status.counts()
    if not counts:
        return fields
    told: tuple[int, ...] = ()
    for count in counts:
        told += (count.remaining, -(-count.useful // TICKS_PER_S))
    items = (limits.policy, limits.rate_limit % told)
    if fields:
        items = (f"{fields[0][1]}, {items[0]}", f"{fields[1][1]}, {items[1]}")
    tightest = min(range(len(counts)), key=lambda index: (counts[index].remaining, -counts[index].reset))
    return (
        (RATE_LIMIT_POLICY, items[0]),
        (_RATE_LIMIT, items[1]),
        *fields[2:],
        limits.counts[tightest],
        (_REMAINING_TOKENS, str(counts[tightest].remaining)),
        (_RESET_TOKENS, duration(counts[tightest].reset)),
    )


def duration(ticks: int) -> str:
    """Word a time as OpenAI does (`120ms`, `1s`, `8.64s`, `6m0s`, `24h0m0s`), rounded up to the millisecond.

    The grammar is that of Go's `time.Duration`, which has nothing larger than hours.
    """
    ms = -(-ticks // 1_000)
    if ms < 1_000:  # noqa: PLR2004 - a second
        return f"{ms}ms" if ms else "0s"
    whole_s, thousandths = divmod(ms, 1_000)
    minutes, whole_s = divmod(whole_s, 60)
    text = f"{whole_s}.{thousandths:03d}".rstrip("0") if thousandths else str(whole_s)
    if not minutes:
        return text + "s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{text}s" if hours else f"{minutes}m{text}s"
