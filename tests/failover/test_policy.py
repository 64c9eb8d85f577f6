"""Which failure moves a request on; and how long a vendor asks to be left alone."""

from __future__ import annotations

import pytest

from proxy.failover.policy import Outcome, ends_at_once, moves_on, outcome_of
from proxy.model import FieldIndex, RetryRules
from proxy.protocol.retry_after import rest_of

NEVER = frozenset({Outcome.OK, Outcome.REFUSED, Outcome.CANCELLED})
KEYS = frozenset({Outcome.CREDENTIALS, Outcome.UNPAID})
PAID = frozenset({Outcome.LOST, Outcome.TIMEOUT})
WORDS = {
    "connect": Outcome.CONNECT,
    "429": Outcome.LIMITED,
    "5xx": Outcome.SERVER_ERROR,
    "error_event": Outcome.ERROR_EVENT,
}


@pytest.mark.parametrize("outcome", Outcome)
def test_policy_without_retry(outcome: Outcome) -> None:
    """Without `retry` only a refused key moves a request on."""
    assert moves_on(outcome, None) == (outcome in KEYS)


@pytest.mark.parametrize("outcome", Outcome)
def test_policy_defaults(outcome: Outcome) -> None:
    """With the defaults everything does that cannot have been paid for."""
    assert moves_on(outcome, RetryRules()) == (outcome not in NEVER | PAID)


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("word", WORDS)
def test_policy_on(outcome: Outcome, word: str) -> None:
    """`on` names what moves on, and a refused key always does; `retry_paid` needs no name."""
    only = RetryRules(on=frozenset({word}))
    paid = RetryRules(on=frozenset({word}), retry_paid=True)

    assert moves_on(outcome, only) == (outcome is WORDS[word] or outcome in KEYS)
    assert moves_on(outcome, paid) == (outcome is WORDS[word] or outcome in KEYS | PAID)


@pytest.mark.parametrize("outcome", Outcome)
def test_policy_ends_at_once(outcome: Outcome) -> None:
    """What may have been paid for is told at once, unless it may be paid twice."""
    assert ends_at_once(outcome, RetryRules()) == (outcome in PAID or outcome is Outcome.REFUSED)
    assert ends_at_once(outcome, RetryRules(retry_paid=True)) == (outcome is Outcome.REFUSED)


@pytest.mark.parametrize(
    ("status", "own", "others"),
    [
        (200, Outcome.OK, Outcome.OK),
        (307, Outcome.OK, Outcome.OK),
        (400, Outcome.OK, Outcome.OK),
        (401, Outcome.CREDENTIALS, Outcome.OK),
        (402, Outcome.UNPAID, Outcome.OK),
        (403, Outcome.CREDENTIALS, Outcome.OK),
        (408, Outcome.OK, Outcome.OK),
        (429, Outcome.LIMITED, Outcome.LIMITED),
        (500, Outcome.SERVER_ERROR, Outcome.SERVER_ERROR),
        (599, Outcome.SERVER_ERROR, Outcome.SERVER_ERROR),
    ],
)
def test_policy_status(status: int, own: Outcome, others: Outcome) -> None:
    """401, 402 and 403 are about the operator's key, where there is one; other 4xx are the request's own."""
    assert outcome_of(status, has_operators_key=True) is own
    assert outcome_of(status, has_operators_key=False) is others


UNIX_S = 1_800_000_000.0


@pytest.mark.parametrize(
    ("fields", "rest_s"),
    [
        ([], None),
        ([(b"Retry-After", b"7")], 7),
        ([(b"Retry-After", b"0.5")], 0.5),
        ([(b"Retry-After", b"Fri, 15 Jan 2027 08:00:30 GMT")], 30),
        ([(b"Retry-After", b"Fri, 15 Jan 2027 07:00:00 GMT")], 0),
        ([(b"Retry-After", b"soon")], None),
        ([(b"Retry-After", b"Mon, 01 Jan 0001 00:00:00 +2359")], 0),
        ([(b"Retry-After", b"Fri, 32 Jan 2027 08:00:30 GMT")], None),
        ([(b"Retry-After", b"-1")], None),
        ([(b"Retry-After", b"9" * 100)], None),
        ([(b"retry-after-ms", b"250"), (b"Retry-After", b"1")], 0.25),
        ([(b"x-ratelimit-remaining-requests", b"0"), (b"x-ratelimit-reset-requests", b"6m0s")], 360),
        ([(b"x-ratelimit-remaining-tokens", b"0"), (b"x-ratelimit-reset-tokens", b"20ms")], 0.02),
        ([(b"x-ratelimit-remaining-requests", b"3"), (b"x-ratelimit-reset-requests", b"1h")], None),
        ([(b"x-ratelimit-remaining-requests", b"0"), (b"x-ratelimit-reset-requests", b"12")], 12),
        ([(b"x-ratelimit-remaining-requests", b"0"), (b"x-ratelimit-reset-requests", b"1s later")], None),
        ([(b"x-ratelimit-remaining-requests", b"0")], None),
        (
            [
                (b"anthropic-ratelimit-tokens-remaining", b"0"),
                (b"anthropic-ratelimit-tokens-reset", b"2027-01-15T08:00:20Z"),
                (b"anthropic-ratelimit-requests-remaining", b"0"),
                (b"anthropic-ratelimit-requests-reset", b"2027-01-15T08:00:10Z"),
            ],
            20,
        ),
    ],
)
def test_retry_after(fields: list[tuple[bytes, bytes]], rest_s: float | None) -> None:
    """`Retry-After` in either form, else the reset of what is used up, in each vendor's spelling."""
    assert rest_of(FieldIndex(fields), UNIX_S) == (None if rest_s is None else pytest.approx(rest_s))
