"""Keys of one upstream: which is next, which ones rest and for how long."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest

from proxy.failover.keys import ASIDE_S, LONGEST_REST_S, Key, KeyPool, credential_field, keys_of
from proxy.model import KeyRules, Origin, Upstream


@dataclass
class Clock:
    """A clock that a test sets."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def pool(clock: Clock, *weights: int, strategy: str = "least_busy", cooldown_s: float = 30.0) -> KeyPool:
    keys = [Key(b"k%d" % at, (b"Authorization", b"Bearer k%d" % at), weight) for at, weight in enumerate(weights)]
    return KeyPool(keys, KeyRules(strategy, cooldown_s), clock)  # type: ignore[arg-type]  # a test names it


def names(pool_: KeyPool, count: int) -> list[int]:
    """The indexes of the keys that are picked, none of them in use."""
    picked = [pool_.pick() for _ in range(count)]
    return [pool_.keys.index(key) for key in picked if key is not None]


@pytest.mark.parametrize("strategy", ["least_busy", "round_robin"])
def test_keys_idle_take_turns(clock: Clock, strategy: str) -> None:
    """Keys that are equally busy are used one after the other."""
    assert names(pool(clock, 1, 1, 1, strategy=strategy), 6) == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("strategy", ["least_busy", "round_robin"])
def test_keys_weights(clock: Clock, strategy: str) -> None:
    """Turns are in proportion to the weights."""
    assert Counter(names(pool(clock, 3, 1, strategy=strategy), 40)) == {0: 30, 1: 10}


def test_keys_least_busy(clock: Clock) -> None:
    """The key with the fewest running streams for its weight is next."""
    keys = pool(clock, 1, 1, 2)
    keys.keys[0].running, keys.keys[1].running, keys.keys[2].running = 2, 1, 3

    assert keys.pick() is keys.keys[1]
    keys.keys[1].running = 2
    assert keys.pick() is keys.keys[2]


@pytest.mark.parametrize("status", [401, 402, 403, 429])
def test_keys_refused_rest(clock: Clock, status: int) -> None:
    """A key that was refused is not used while it rests, and is used again then."""
    keys = pool(clock, 1, 1)
    rest_s = keys.keys[0].refused(status, 7.0, clock.now_s, 30.0)

    assert rest_s == (7.0 if status == 429 else 600.0)
    assert names(keys, 3) == [1, 1, 1]
    clock.now_s += rest_s
    assert 0 in names(keys, 4)


def test_keys_rest_grows(clock: Clock) -> None:
    """Where the vendor does not say how long, the rest doubles from a second to the cooldown, until a success."""
    (key,) = pool(clock, 1).keys
    rests = []
    for _ in range(7):
        rests.append(key.refused(429, None, clock.now_s, 30.0))
        clock.now_s += 31
    key.accepted(clock.now_s)

    assert rests == [1, 2, 4, 8, 16, 30, 30]
    assert key.refused(429, None, clock.now_s, 30.0) == 1


def test_keys_rest_is_bounded(clock: Clock) -> None:
    """A vendor that says a day is asked again after an hour; a rest that is shorter does not end a longer one."""
    (key,) = pool(clock, 1).keys
    assert key.refused(429, 86_400.0, clock.now_s, 30.0) == LONGEST_REST_S == 3600.0
    assert key.refused(429, 1.0, clock.now_s, 30.0) is None
    assert key.resting_until_s == clock.now_s + LONGEST_REST_S


def test_keys_all_rest(clock: Clock) -> None:
    """Where all keys rest, the one that rests shortest is asked: nobody is refused because of it."""
    keys = pool(clock, 1, 1, 1)
    for key, rest_s in zip(keys.keys, (30.0, 5.0, 20.0), strict=True):
        key.refused(429, rest_s, clock.now_s, 30.0)

    assert keys.all_rest
    assert keys.pick() is keys.keys[1]


def test_keys_probe(clock: Clock) -> None:
    """A key that was set aside is tried by one request; the others wait for what that finds."""
    keys = pool(clock, 1, 1)
    bad, good = keys.keys
    bad.refused(401, None, clock.now_s, 30.0)
    clock.now_s += ASIDE_S
    good.running = 5

    assert [keys.pick(), keys.pick(), keys.pick()] == [bad, good, good]
    bad.accepted(clock.now_s)
    assert keys.pick() is bad


def test_keys_late_success(clock: Clock) -> None:
    """An answer to a request that began before the refusal says nothing."""
    (key,) = pool(clock, 1).keys
    begun_s = clock.now_s
    clock.now_s += 1
    key.refused(429, 10.0, clock.now_s, 30.0)
    key.accepted(begun_s)

    assert key.rests(clock.now_s)


def test_keys_next_after(clock: Clock) -> None:
    """A request that was refused for its key goes on to one that does not rest; each is tried once."""
    keys = pool(clock, 1, 1, 1)
    first, second, third = keys.keys
    first.refused(429, None, clock.now_s, 30.0)

    assert keys.next_after([first], 429) is second
    second.refused(429, None, clock.now_s, 30.0)
    assert keys.next_after([first, second], 429) is third
    third.refused(429, None, clock.now_s, 30.0)
    assert keys.next_after([first, second, third], 429) is None


def test_keys_next_after_resting(clock: Clock) -> None:
    """After a 429 no key that rests is asked; after a refusal of the key itself one that is only limited is."""
    keys = pool(clock, 1, 1, 1)
    limited, refused, mine = keys.keys
    limited.refused(429, None, clock.now_s, 30.0)
    refused.refused(401, None, clock.now_s, 30.0)
    mine.refused(403, None, clock.now_s, 30.0)

    assert keys.next_after([mine], 429) is None
    assert keys.next_after([mine], 403) is limited


def test_keys_of_an_upstream() -> None:
    """Each key once, in the field that the dialect has; where an operator's header stands there, none is used."""
    base = {
        "origin": Origin("https", "x", 443),
        "base_path": "",
        "dialect": "openai",
        "path": None,
        "key_source": "own",
    }
    keys = keys_of(Upstream(name="x", keys=("one", "two", "one"), key_weights=(1, 2, 3), **base))  # type: ignore[arg-type]
    replaced = Upstream(name="x", keys=("one",), headers=((b"authorization", b"Basic x"),), **base)  # type: ignore[arg-type]
    azure = Upstream(name="x", keys=("one",), credential_header=b"api-key", **base)  # type: ignore[arg-type]

    assert [(key.field, key.weight) for key in keys] == [
        ((b"Authorization", b"Bearer one"), 1),
        ((b"Authorization", b"Bearer two"), 2),
    ]
    assert keys[0].name == "7692c3ad"
    assert "one" not in repr(keys)
    assert keys_of(replaced) == []
    assert credential_field(azure, b"one") == (b"api-key", b"one")
