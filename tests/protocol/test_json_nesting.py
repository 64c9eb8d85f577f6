"""Brackets matched by kind, a piece at a time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import InvalidRequestError
from proxy.protocol.json_nesting import check_balanced, unmatched


@pytest.mark.parametrize(
    ("piece", "closers", "due"),
    [
        (b"", b"", b""),
        (b"1,2", b"", b""),
        (b"[]{}[{}]", b"", b""),
        (b"]}", b"]}", b""),
        (b"[{", b"", b"]}"),
        (b"}[", b"}", b"]"),
        (b']{"]":"[\\"{"}', b"]", b""),
        (b"[" * 50 + b"]" * 49, b"", b"]"),
        (b"[{" * 50 + b"}]" * 51, b"}]", b""),
    ],
)
def test_unmatched(piece: bytes, closers: bytes, due: bytes) -> None:
    """What a piece closes comes back in order, what it leaves open as the brackets that are due."""
    assert unmatched(piece) == (bytearray(closers), bytearray(due))


@pytest.mark.parametrize("piece", [b"[}", b"{]", b"[{]}", b"[" * 50 + b"}", b"[[]}"])
def test_unmatched_kinds(piece: bytes) -> None:
    """A bracket is closed by its own kind."""
    with pytest.raises(InvalidRequestError):
        unmatched(piece)


@pytest.mark.parametrize("piece", [b"[", b"{}[", b"[]{", b"[[]"])
def test_check_balanced(piece: bytes) -> None:
    """Nothing is left open."""
    with pytest.raises(InvalidRequestError):
        check_balanced(piece)


def _slowly(piece: bytes) -> tuple[bytes, bytes] | None:
    closers, due = b"", b""
    for mark in piece:
        if mark in b"[{":
            due += b"]" if mark == ord("[") else b"}"
        elif not due:
            closers += bytes([mark])
        elif due[-1] != mark:
            return None
        else:
            due = due[:-1]
    return closers, due


@given(st.text(st.sampled_from("[]{}"), max_size=40) | st.text(st.sampled_from("[]"), max_size=100))
def test_unmatched_is_what_a_stack_finds(text: str) -> None:
    """Removing pairs comes to the same as a stack does."""
    expected = _slowly(text.encode())
    try:
        found = unmatched(text.encode())
    except InvalidRequestError:
        assert expected is None
    else:
        assert expected is not None
        assert found == (bytearray(expected[0]), bytearray(expected[1]))
