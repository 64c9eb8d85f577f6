"""Sealing: what a ticket's holder gets back, and what nobody else gets."""

from __future__ import annotations

import hashlib
import random
import re
import tracemalloc
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.model import RequestHead
from proxy.protocol.json_text import PIECE_BYTES
from proxy.tickets.sealed import Ticket
from tests.steps import finish

STEADY = settings(max_examples=200)
HEAD = RequestHead(
    "POST",
    b"/forward-sse",
    b"upstream=main&x=%75",
    ((b"Authorization", b"Bearer the-callers-token"), (b"Content-Type", b"text/event-stream"), (b"X-Odd", b"\xe9\xff")),
)
BODY = b'{"model": "gpt-x", "messages": ["the prompt"]}'


def test_seal_is_undone_by_the_ticket_alone() -> None:
    """The text that the client is given brings the request back, byte for byte."""
    ticket = Ticket.new()
    sealed = finish(ticket.seal(HEAD, BytesIO(BODY)))

    again = Ticket.parse(ticket.text.encode())

    assert again is not None
    assert again.name == ticket.name
    assert finish(again.unseal(BytesIO(sealed))) == (HEAD, BODY)


@given(body=st.binary(max_size=300), query=st.none() | st.binary(max_size=30), values=st.lists(st.binary(max_size=30)))
@STEADY
def test_seal_keeps_every_byte(body: bytes, query: bytes | None, values: list[bytes]) -> None:
    """Bodies, queries and values are bytes, whatever they would be as text."""
    head = RequestHead("POST", b"/forward-sse", query, tuple((b"x-field", value) for value in values))
    ticket = Ticket.new()
    assert finish(ticket.unseal(BytesIO(finish(ticket.seal(head, BytesIO(body)))))) == (head, body)


def test_seal_leaves_cookies_out() -> None:
    """A browser's cookies go to no upstream, so they are not kept either."""
    head = RequestHead("POST", b"/forward-sse", None, ((b"Cookie", b"session=1"), (b"X-A", b"b")))
    ticket = Ticket.new()
    assert finish(ticket.unseal(BytesIO(finish(ticket.seal(head, BytesIO())))))[0].fields == ((b"X-A", b"b"),)


def test_sealed_tells_nothing() -> None:
    """Neither what is kept nor its name holds the prompt, the token, the ticket or a part of it."""
    ticket = Ticket.new()
    sealed = finish(ticket.seal(HEAD, BytesIO(BODY)))
    for secret in (b"prompt", b"the-callers-token", b"authorization", ticket.id, ticket.key, ticket.text.encode()):
        assert secret.lower() not in sealed.lower()
    assert ticket.name == hashlib.sha256(ticket.id).hexdigest()
    assert ticket.text not in repr(ticket)
    assert repr(ticket.key) not in repr(ticket)


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, 3 * PIECE_BYTES + 7])
def test_body_of_several_pieces(size: int) -> None:
    """A body of any number of pieces comes back."""
    body = random.Random(size).randbytes(size)
    ticket = Ticket.new()
    assert finish(ticket.unseal(BytesIO(finish(ticket.seal(HEAD, BytesIO(body)))))) == (HEAD, body)


def test_nobody_elses_bytes_are_changed() -> None:
    """Sealing overwrites a buffer, and opening too; bytes that somebody else still has stay as they are."""
    ticket = Ticket.new()
    body, before = bytes(bytearray(BODY)), bytes(bytearray(BODY))
    sealed = finish(ticket.seal(HEAD, BytesIO(body)))
    copy = bytes(bytearray(sealed))
    assert finish(ticket.unseal(BytesIO(sealed))) == (HEAD, BODY)
    assert (body, sealed) == (before, copy)


def test_large_body_is_held_once() -> None:
    """A large request is sealed and opened where it is: no second one is held beside it."""
    size = 8 * 2**20
    ticket = Ticket.new()
    tracemalloc.start()
    try:
        buffer = BytesIO(bytes(size))
        buffer = BytesIO(finish(ticket.seal(HEAD, buffer)))
        _, body = finish(ticket.unseal(buffer))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(body) == size
    # Beside it only the room that a buffer takes when it grows, an eighth.
    assert peak < 1.25 * size


def test_tickets_differ() -> None:
    """Each ticket has an id and a key of its own, and is one URL-safe word."""
    tickets = [Ticket.new() for _ in range(100)]
    assert len({ticket.id for ticket in tickets} | {ticket.key for ticket in tickets}) == 200
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{64}", ticket.text) for ticket in tickets)


def test_unseal_with_another_key() -> None:
    """Who knows where a request is kept, but not the ticket's key, cannot open it; nor can another ticket."""
    ticket, other = Ticket.new(), Ticket.new()
    sealed = finish(ticket.seal(HEAD, BytesIO(BODY)))
    for wrong in (Ticket(ticket.id, other.key), Ticket(other.id, ticket.key), other):
        with pytest.raises(ValueError, match="not sealed by this ticket"):
            finish(wrong.unseal(BytesIO(sealed)))


def test_unseal_tampered() -> None:
    """What was changed anywhere, in one bit, is not opened."""
    ticket = Ticket.new()
    sealed = finish(ticket.seal(HEAD, BytesIO(BODY)))
    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1
        with pytest.raises(ValueError, match="not"):
            finish(ticket.unseal(BytesIO(changed)))


def test_unseal_truncated_or_longer() -> None:
    """What was cut anywhere, or has something behind it, is not opened."""
    ticket = Ticket.new()
    sealed = finish(ticket.seal(HEAD, BytesIO(BODY)))
    for cut in [*(sealed[:size] for size in range(len(sealed))), sealed + b"\x00"]:
        with pytest.raises(ValueError, match="not"):
            finish(ticket.unseal(BytesIO(cut)))


@pytest.mark.parametrize(
    "text",
    [b"", b"made-up", b"A" * 63, b"A" * 65, b"A" * 63 + b"=", b"A" * 63 + b"+", b"A" * 63 + b"\n", b"A" * 64 + b"\n"],
)
def test_parse_refuses_what_is_no_ticket(text: bytes) -> None:
    """Only 64 URL-safe characters can be a ticket."""
    assert Ticket.parse(text) is None
