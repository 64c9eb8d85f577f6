"""Operators' tokens and sessions, without a request."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.auth.operators import AdminRules, Operators, OperatorToken
from proxy.errors import ExpiredTokenError, InvalidTokenError

TOKEN = "fssa_token-canary"
SECRET = bytes(range(32))


def entry(name: str = "ops", token: str = TOKEN) -> OperatorToken:
    return OperatorToken(name, hashlib.sha256(token.encode()).digest(), "operate")


def operators(*tokens: OperatorToken, now_s: float = 1000.0) -> Operators:
    return Operators(AdminRules(tokens, needs_credential=True), secret=SECRET, now=lambda: now_s)


@given(st.text(min_size=1, max_size=64))
def test_session_of_any_name(name: str) -> None:
    """A session names its operator, whatever the name, in characters that a cookie may have."""
    name = name.encode("utf-8", "ignore").decode() or "x"
    known = operators(entry(name))
    operator, session = known.open_session(TOKEN)
    assert session.replace("-", "").replace("_", "").isalnum()
    assert (operator.name, known.resume_session(session).name) == (name, name)


@given(st.text(max_size=600))
def test_session_of_anything(text: str) -> None:
    """What is no session is refused as one that has ended, whatever it is."""
    with pytest.raises(ExpiredTokenError):
        operators(entry()).resume_session(text)


@given(st.text(max_size=100))
def test_token_of_anything(text: str) -> None:
    """What is no token is refused, whatever it is."""
    with pytest.raises(InvalidTokenError):
        operators(entry()).authenticate(text)


def test_nothing_secret_is_shown() -> None:
    """Neither a digest nor the secret stands in what is printed of the objects."""
    known = operators(entry())
    operator, session = known.open_session(TOKEN)
    text = f"{known!r} {operator!r} {known.rules!r} {entry()!r}"
    assert hashlib.sha256(TOKEN.encode()).hexdigest() not in text
    assert repr(entry().digest) not in text
    assert session not in text


def test_session_before_another_login() -> None:
    """Sessions of one operator are independent of each other, and each ends by its own clock."""
    earlier, later = operators(entry(), now_s=1000.0), operators(entry(), now_s=1000.0 + 3600)
    first, second = earlier.open_session(TOKEN)[1], later.open_session(TOKEN)[1]
    at_end = operators(entry(), now_s=1000.0 + earlier.session_s)
    with pytest.raises(ExpiredTokenError):
        at_end.resume_session(first)
    assert at_end.resume_session(second).is_valid()
