"""API keys by digest."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.auth.api_keys import ApiKeyOwner, ApiKeys

KEY = "fsse_0123456789abcdef"
SHA256 = hashlib.sha256(KEY.encode()).hexdigest()


def test_api_key_known() -> None:
    """A key is found by its digest, also one written in capitals."""
    assert ApiKeys([(SHA256, "ci", "pro")]).find(KEY) == ApiKeyOwner("ci", "pro")
    assert ApiKeys([(SHA256.upper(), "ci", None)]).find(KEY) == ApiKeyOwner("ci", None)


@pytest.mark.parametrize(
    "key", ["", KEY[:-1], KEY + "0", KEY.upper(), SHA256, "fsse_\x00", "schlüssel", "\ud800", "x" * 10_000_000]
)
def test_api_key_unknown(key: str) -> None:
    """Anything else is nobody's, the digest itself too, and nothing raises."""
    assert ApiKeys([(SHA256, "ci", "pro")]).find(key) is None


def test_api_key_whose_digest_is_zero() -> None:
    """The dummy that a miss is compared with is nobody's key, even where an entry has just this digest."""
    assert ApiKeys([]).find("") is None
    assert ApiKeys([("0" * 64, "nobody", None)]).find("anything") is None


@pytest.mark.parametrize(
    "digest", ["", "00", "z" * 64, SHA256 + "00", " ".join([SHA256[:32], SHA256[32:]]), SHA256[:-1]]
)
def test_api_key_entry_malformed(digest: str) -> None:
    """An entry that can match no key is refused when it is loaded."""
    with pytest.raises(ValueError, match="64 hex digits"):
        ApiKeys([(digest, "ci", None)])


def test_api_key_entry_twice() -> None:
    """One key cannot belong to two users."""
    with pytest.raises(ValueError, match="same sha256"):
        ApiKeys([(SHA256, "ci", None), (SHA256.upper(), "cd", None)])


@given(st.text())
def test_api_key_of_arbitrary_text(key: str) -> None:
    """No text raises."""
    assert ApiKeys([(SHA256, "ci", None)]).find(key) is None or key == KEY
