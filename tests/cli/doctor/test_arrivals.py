"""Spacing of arrivals against spacing of sending: noise, latency and jitter are no buffer."""

from __future__ import annotations

import random

import pytest

from proxy.cli.doctor.arrivals import Arrival, pattern_of

EVENTS, INTERVAL_S = 10, 0.1
SENT_S = [n * INTERVAL_S for n in range(EVENTS)]


def arrived(times_s: list[float]) -> list[Arrival]:
    return [Arrival(n, sent_s, time_s) for n, (sent_s, time_s) in enumerate(zip(SENT_S, times_s, strict=True))]


@pytest.mark.parametrize("lag_s", [0.0, 5.0, -3600.0], ids=["none", "slow", "another clock"])
def test_pattern_as_sent(lag_s: float) -> None:
    """The same lag of all, and the difference of two clocks, is no pattern at all."""
    pattern = pattern_of(arrived([sent_s + lag_s for sent_s in SENT_S]))

    assert (pattern.together, pattern.lumps, pattern.is_held) == (0.0, EVENTS, False)
    assert pattern.jitter_s == pytest.approx(0, abs=1e-6)


def test_pattern_all_at_once() -> None:
    """All at the end is held, in one lump."""
    pattern = pattern_of(arrived([2.0 + n * 0.0001 for n in range(EVENTS)]))

    assert (pattern.is_held, pattern.is_at_once, pattern.lumps) == (True, True, 1)


@pytest.mark.parametrize("size", [3, 4, 5])
def test_pattern_lumps(size: int) -> None:
    """Lumps are held, and are counted; they are not all at once."""
    times_s = [SENT_S[min(n - n % size + size, EVENTS) - 1] for n in range(EVENTS)]
    pattern = pattern_of(arrived(times_s))

    assert (pattern.is_held, pattern.is_at_once) == (True, False)
    assert pattern.lumps == -(-EVENTS // size)


@pytest.mark.parametrize("seed", range(20))
def test_pattern_jitter(seed: int) -> None:
    """Jitter of one and a half intervals, in order as TCP keeps it, is not held."""
    chance = random.Random(seed)
    times_s: list[float] = []
    for sent_s in SENT_S:
        times_s.append(max([sent_s + chance.uniform(0.05, 0.2), *times_s[-1:]]))

    assert not pattern_of(arrived(times_s)).is_held


def test_pattern_one_stall() -> None:
    """One loss in the middle, after which four events come together, is not held."""
    times_s = [max(sent_s, 0.6 if 0.2 <= sent_s <= 0.6 else 0.0) for sent_s in SENT_S]

    assert not pattern_of(arrived(times_s)).is_held


def test_pattern_sent_together() -> None:
    """Events that left together tell nothing, and are not held for arriving so."""
    assert not pattern_of([Arrival(0, 1.0, 2.0), Arrival(1, 1.0, 2.0)]).is_held
