"""When nobody is to ask the server, and when again."""

from __future__ import annotations

from itertools import pairwise

from proxy.limits.redis.breaker import PAUSES_S, TOLERATED, Breaker


def is_open(breaker: Breaker) -> bool:
    return breaker.is_open


def test_opens_after_failures_in_a_row() -> None:
    """A few failures open it, but not where a success was in between."""
    breaker = Breaker()
    for _ in range(10):
        for _ in range(TOLERATED - 1):
            breaker.failed()
        assert not is_open(breaker)
        breaker.succeeded()
    for _ in range(TOLERATED):
        breaker.failed()
    assert is_open(breaker)


def test_unreachable_opens_at_once() -> None:
    """Where there is no connection to be had, nobody need try three times."""
    breaker = Breaker()
    breaker.trip()
    assert is_open(breaker)


def test_on_trial_after_a_probe() -> None:
    """After a probe the next failure opens it again; the next success forgives everything."""
    breaker = Breaker()
    breaker.trip()
    breaker.probed()
    assert not is_open(breaker)
    breaker.failed()
    assert is_open(breaker)
    breaker.probed()
    breaker.succeeded()
    breaker.failed()
    assert not is_open(breaker)


def test_a_probe_forgives_no_more_than_there_was() -> None:
    """A connection that is replaced in good times puts nobody on trial."""
    breaker = Breaker()
    breaker.probed()
    breaker.failed()
    assert not is_open(breaker)


def test_pauses() -> None:
    """Pauses grow up to a bound, and begin anew after a success."""
    breaker = Breaker()
    pauses = [breaker.next_pause_s() for _ in range(8)]
    assert all(former <= later for former, later in pairwise(pauses))
    assert pauses[0] == PAUSES_S[0]
    assert pauses[-1] == pauses[-2] == PAUSES_S[-1]
    breaker.succeeded()
    assert breaker.next_pause_s() == PAUSES_S[0]
