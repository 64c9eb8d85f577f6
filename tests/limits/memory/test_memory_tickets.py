"""Tickets in memory: taken once, lapsed in time, bounded."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from proxy.errors import LimitsUnavailableError, TooManyTicketsError
from proxy.limits.memory.store import MemoryStore
from proxy.limits.memory.tickets import OVERHEAD_BYTES, TicketStore
from proxy.limits.store import MAX_OPEN_TICKET_BYTES, MAX_OPEN_TICKETS, SPENT, SPENT_TICKET_S, Store
from proxy.model import Plan, Principal

ALICE, BOB = ("tests", "alice"), ("tests", "bob")


class Clock:
    """A monotonic clock that the test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_store_keeps_tickets_for_the_pair_of_issuer_and_user() -> None:
    """A ticket comes back once from the store, and two issuers' users of one name have bounds of their own."""
    store: Store = MemoryStore(Clock())
    plan = Plan("default")
    for number in range(MAX_OPEN_TICKETS):
        await store.put_ticket(f"a{number}", b"sealed", 60.0, Principal("one", "alice", plan))
    with pytest.raises(TooManyTicketsError):
        await store.put_ticket("a", b"sealed", 60.0, Principal("one", "alice", Plan("other")))
    await store.put_ticket("b", b"other", 60.0, Principal("two", "alice", plan))

    assert await store.take_ticket("a0") == b"sealed"
    assert await store.take_ticket("a0") is SPENT
    assert await store.take_ticket("b") == b"other"
    assert await store.take_ticket("never") is None


def test_take_after_the_time() -> None:
    """At its time, and not a moment earlier, a ticket is as unknown as one that never was."""
    clock = Clock()
    shelf = TicketStore(clock)
    shelf.put("early", b"1", 60.0, ALICE)
    shelf.put("late", b"2", 60.0, ALICE)
    clock.now += 59.999
    assert shelf.take("early") == b"1"
    clock.now += 0.001
    assert shelf.take("late") is None
    assert shelf.take("early") is SPENT
    assert shelf.bytes_held == 0


def test_take_of_a_short_one_behind_a_long_one() -> None:
    """A ticket that lapsed behind one that did not is unknown too, and given to nobody."""
    clock = Clock()
    shelf = TicketStore(clock)
    shelf.put("long", b"1", 60.0, ALICE)
    shelf.put("short", b"2", 1.0, ALICE)
    clock.now += 1.0
    assert shelf.take("short") is None
    assert shelf.take("short") is None
    assert shelf.take("long") == b"1"


def test_spent_is_forgotten_after_an_hour() -> None:
    """What was taken is told apart for an hour, then unknown; it never comes back."""
    clock = Clock()
    shelf = TicketStore(clock)
    shelf.put("a", b"1", 60.0, ALICE)
    assert shelf.take("a") == b"1"
    clock.now += SPENT_TICKET_S - 0.001
    assert shelf.take("a") is SPENT
    clock.now += 0.001
    assert shelf.take("a") is None


def test_spent_is_bounded() -> None:
    """Of the taken ones at most so many names are kept, the latest."""
    shelf = TicketStore(Clock(), max_spent=2)
    for name in "abc":
        shelf.put(name, b"1", 60.0, ALICE)
        shelf.take(name)
    assert [shelf.take(name) for name in "abc"] == [None, SPENT, SPENT]


def test_put_too_many() -> None:
    """One user's open tickets are bounded; the refusal says when the oldest lapses, and then it is true."""
    clock = Clock()
    shelf = TicketStore(clock)
    for number in range(MAX_OPEN_TICKETS):
        shelf.put(str(number), b"1", 60.0, ALICE)
        clock.now += 1.0
    with pytest.raises(TooManyTicketsError) as refused:
        shelf.put("more", b"1", 60.0, ALICE)
    assert refused.value.retry_after_s == 60.0 - MAX_OPEN_TICKETS
    assert refused.value.message == "All of your 32 tickets at a time are open; use one, or try again in 28 s."
    shelf.put("bob's", b"1", 60.0, BOB)

    clock.now += refused.value.retry_after_s
    shelf.put("more", b"1", 60.0, ALICE)
    with pytest.raises(TooManyTicketsError):
        shelf.put("yet more", b"1", 60.0, ALICE)
    assert shelf.take("5") == b"1"
    shelf.put("yet more", b"1", 60.0, ALICE)


def test_put_too_large() -> None:
    """One user's open tickets are bounded in bytes; a lone one may be larger, for `max_body` has bounded it."""
    shelf = TicketStore(Clock())
    shelf.put("small", b"1", 60.0, ALICE)
    with pytest.raises(TooManyTicketsError, match=r"^Your open tickets may hold 32 MiB at a time; .* in 60 s\.$"):
        shelf.put("large", bytes(MAX_OPEN_TICKET_BYTES), 60.0, ALICE)
    shelf.take("small")
    shelf.put("large", bytes(MAX_OPEN_TICKET_BYTES), 60.0, ALICE)
    with pytest.raises(TooManyTicketsError):
        shelf.put("small", b"1", 60.0, ALICE)
    assert shelf.take("small") is SPENT


def test_put_without_room_for_anybody() -> None:
    """The whole is bounded, whoever asks; nothing that waits is forgotten for a newcomer."""
    shelf = TicketStore(Clock(), max_bytes=2 * OVERHEAD_BYTES + 2)
    shelf.put("a", b"1", 60.0, ALICE)
    shelf.put("b", b"2", 60.0, BOB)
    with pytest.raises(LimitsUnavailableError):
        shelf.put("c", b"", 60.0, ("tests", "carol"))
    assert shelf.take("a") == b"1"
    shelf.put("c", b"", 60.0, ("tests", "carol"))
    assert shelf.take("b") == b"2"


class Shelf(RuleBasedStateMachine):
    """Against a model that keeps everything: nothing is given twice, late, or to the wrong name; nothing leaks."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.shelf = TicketStore(self.clock, max_bytes=20 * OVERHEAD_BYTES)
        self.open: dict[str, tuple[bytes, float]] = {}
        self.count = 0

    @rule(owner=st.sampled_from([ALICE, BOB]), ttl_s=st.sampled_from([1.0, 60.0]))
    def put(self, owner: tuple[str, str], ttl_s: float) -> None:
        self.count += 1
        name, sealed = f"t{self.count}", b"%d" % self.count
        try:
            self.shelf.put(name, sealed, ttl_s, owner)
        except (TooManyTicketsError, LimitsUnavailableError):
            assert len(self.open) >= 19
        else:
            self.open[name] = (sealed, self.clock.now + ttl_s)

    @rule(back=st.integers(0, 5))
    def take(self, back: int) -> None:
        name = f"t{self.count - back}"
        sealed, expires_s = self.open.pop(name, (None, 0.0))
        got = self.shelf.take(name)
        if sealed is not None and self.clock.now < expires_s:
            assert got == sealed
        else:
            assert got in {None, SPENT}

    @rule(seconds=st.sampled_from([0.5, 5.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def is_bounded(self) -> None:
        waiting = self.shelf._open
        assert self.shelf.bytes_held == sum(len(one.sealed) + OVERHEAD_BYTES for one in waiting.values())
        assert self.shelf.bytes_held <= 20 * OVERHEAD_BYTES
        assert {name for names in self.shelf._owned.values() for name in names} == set(waiting)


TestShelf = Shelf.TestCase
TestShelf.settings = settings(max_examples=60, stateful_step_count=40)
