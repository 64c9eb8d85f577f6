"""Where credentials are found in a request, and how they leave the query."""

from __future__ import annotations

from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.auth.credentials import (
    MAX_CREDENTIAL_BYTES,
    find_credential,
    only_bearer,
    repeats_credential,
    strip_query,
)
from proxy.errors import InvalidRequestError, InvalidTokenError
from proxy.model import RequestHead

LONGEST = b"t" * MAX_CREDENTIAL_BYTES


def head(*fields: tuple[bytes, bytes], query: bytes | None = None) -> RequestHead:
    return RequestHead("POST", b"/forward-sse", query, fields)


@pytest.mark.parametrize(
    "fields",
    [
        [(b"Authorization", b"Bearer tok")],
        [(b"authorization", b"bearer tok")],
        [(b"AUTHORIZATION", b" BEARER tok\t")],
        [(b"Authorization", b"Bearer  tok")],
        [(b"Authorization", b"bearer    tok ")],
        [(b"x-api-key", b"tok")],
        [(b"X-Api-Key", b"tok")],
        [(b"api-key", b"tok")],
        [(b"x-goog-api-key", b"tok")],
        [(b"Authorization", b"Bearer tok"), (b"x-api-key", b"tok")],
        [(b"x-api-key", b"tok"), (b"x-api-key", b"tok")],
        [(b"Authorization", b"Basic dTpw"), (b"x-api-key", b"tok")],
        [(b"Authorization", b"Bearer tok"), (b"x-api-key", b"")],
    ],
)
def test_credential_in_each_place(fields: list[tuple[bytes, bytes]]) -> None:
    """Each SDK's header carries the credential, whatever its case, and agreeing ones are one."""
    assert find_credential(head(*fields), query_key=False, query_token=False) == "tok"


def test_credential_in_the_usual_place() -> None:
    """The token of `Authorization: Bearer` is given as it came, where no other field can carry one."""
    assert only_bearer(head((b"Host", b"a"), (b"authorization", b"Bearer tok"), (b"x_api_key", b"other"))) == b"tok"


@pytest.mark.parametrize(
    ("fields", "query"),
    [
        ([], None),
        ([(b"Authorization", b"Basic dTpw")], None),
        ([(b"Authorization", b"Bearer")], None),
        ([(b"Authorization", b"Bearer tok"), (b"Authorization", b"Bearer tok")], None),
        ([(b"Authorization", b"Bearer tok"), (b"X-Api-Key", b"other")], None),
        ([(b"Authorization", b"Bearer tok"), (b"api-key", b"tok")], None),
        ([(b"Authorization", b"Bearer tok"), (b"x-goog-api-key", b"")], None),
        ([(b"Authorization", b"Bearer tok")], b"key=other"),
        ([(b"Authorization", b"Bearer tok")], b"access_token=tok"),
    ],
)
def test_credential_in_no_usual_place(fields: list[tuple[bytes, bytes]], query: bytes | None) -> None:
    """Where there is none, or may be a second one, the head has to be looked at as a whole."""
    assert only_bearer(head(*fields, query=query)) is None


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(b"Authorization", b"Basic dTpw")],
        [(b"Authorization", b"Bearertok")],
        [(b"Authorization", b"")],
        [(b"x-api-key", b"")],
        [(b"x_api_key", b"tok")],
        [(b"Proxy-Authorization", b"Bearer tok")],
        [(b"Cookie", b"access_token=tok")],
    ],
)
def test_credential_absent(fields: list[tuple[bytes, bytes]]) -> None:
    """Another scheme, an empty key field and look-alike names carry no credential."""
    assert find_credential(head(*fields), query_key=False, query_token=True) is None


@pytest.mark.parametrize(
    "value",
    [
        b"Bearer",
        b"Bearer ",
        b"Bearer   ",
        b"Bearer\ttok",
        b"Bearer \ttok",
        b"Bearer  a b",
        b"Bearer tok\x0b",
        b"Bearer a b",
        b"Bearer a\tb",
        b"Bearer t\xc3\xb6k",
        b"Bearer t\x00k",
        b"Bearer t\x7fk",
        b"Bearer t" + LONGEST,
    ],
)
def test_bearer_malformed(value: bytes) -> None:
    """What cannot be a token after `Bearer` is an invalid token, not a missing one and not a crash."""
    with pytest.raises(InvalidTokenError):
        find_credential(head((b"Authorization", value)), query_key=False, query_token=False)


def test_credential_of_the_longest_length() -> None:
    """A credential of exactly the bound is looked at."""
    assert find_credential(head((b"api-key", LONGEST)), query_key=False, query_token=False) == LONGEST.decode()


@pytest.mark.parametrize(
    ("fields", "query"),
    [
        ([(b"Authorization", b"Bearer a"), (b"Authorization", b"Bearer b")], None),
        ([(b"Authorization", b"Bearer a"), (b"authorization", b"Bearer a")], None),
        ([(b"Authorization", b"Basic a"), (b"Authorization", b"Bearer a")], None),
        ([(b"Authorization", b"Bearer a"), (b"x-api-key", b"b")], None),
        ([(b"x-api-key", b"a"), (b"x-api-key", b"b")], None),
        ([(b"x-api-key", b"a"), (b"api-key", b"b")], None),
        ([(b"Authorization", b"Bearer a")], b"access_token=b"),
        ([], b"access_token=a&access_token=a"),
        ([], b"access_token=a&key=b"),
    ],
)
def test_credentials_that_disagree(fields: list[tuple[bytes, bytes]], query: bytes | None) -> None:
    """Two different credentials, or a place that may be used once used twice, are a bad request; none is picked."""
    with pytest.raises(InvalidRequestError):
        find_credential(head(*fields, query=query), query_key=True, query_token=True)


@pytest.mark.parametrize(
    "query", [b"access_token=tok", b"access%5Ftoken=tok", b"a=1&%61ccess_token=tok", b"access_token", b"access_token="]
)
def test_query_token_not_allowed(query: bytes) -> None:
    """Without `query_token`, an access token in the query is a bad request in every spelling, also beside a header."""
    with pytest.raises(InvalidRequestError):
        find_credential(head((b"x-api-key", b"tok"), query=query), query_key=False, query_token=False)


def test_query_token_allowed() -> None:
    """With `query_token`, the percent-decoded `access_token` is the credential."""
    assert find_credential(head(query=b"a=1&access%5Ftoken=t%6Fk"), query_key=False, query_token=True) == "tok"


@pytest.mark.parametrize("value", [b"", b"%00", b"a%20b", b"%C3%B6", b"%74" * (MAX_CREDENTIAL_BYTES + 1)])
def test_query_token_malformed(value: bytes) -> None:
    """What decodes to no token is an invalid token."""
    with pytest.raises(InvalidTokenError):
        find_credential(head(query=b"access_token=" + value), query_key=False, query_token=True)


def test_query_key_by_dialect() -> None:
    """`?key=` is a credential only where the dialect has it there."""
    assert find_credential(head(query=b"alt=sse&%6Bey=tok"), query_key=True, query_token=False) == "tok"
    assert find_credential(head(query=b"alt=sse&key=tok"), query_key=False, query_token=False) is None
    assert find_credential(head(query=b"key=&alt=sse"), query_key=True, query_token=False) is None


@pytest.mark.parametrize(
    ("query", "query_key", "expected"),
    [
        (None, True, None),
        (b"", True, b""),
        (b"access_token=t", False, None),
        (b"&access_token=t", False, None),
        (b"a=%7e&access%5ftoken=t&b=+&&c", False, b"a=%7e&b=+&&c"),
        (b"access_token", False, None),
        (b"key=t&alt=sse", True, b"alt=sse"),
        (b"%6bey=t&alt=sse&KEY=1", True, b"alt=sse&KEY=1"),
        (b"key=t&alt=sse", False, b"key=t&alt=sse"),
        (b"my_access_token=1&x=access_token", False, b"my_access_token=1&x=access_token"),
    ],
)
def test_strip_query(query: bytes | None, query_key: bool, expected: bytes | None) -> None:
    """The members that carry a credential go, every other byte stays."""
    assert strip_query(query, query_key=query_key) == expected


def test_repeated_credential() -> None:
    """What a caller may have authenticated with is found in each of the values, wherever it stood."""
    caller = head((b"Authorization", b"Bearer token-of-alice"), query=b"k%65y=key-of-alice")
    for secret in (b"token-of-alice", b"key-of-alice", b"pass-of-alice"):
        assert repeats_credential([b"a", b"Bearer " + secret + b"x", b"b"], caller, "pass-of-alice")
    assert not repeats_credential([b"a", b"Bearer other"], caller, "pass-of-alice")


def test_repeated_credential_of_too_many() -> None:
    """A query cannot make thousands of credentials that are each looked for in thousands of values."""
    query = b"&".join(b"key=secret-%d" % number for number in range(17))
    with pytest.raises(InvalidRequestError):
        repeats_credential([b"x"], head(query=query))
    assert not repeats_credential([b"x"], head(query=b"&".join([b"key=secret-1"] * 1000)))


@given(st.text(alphabet="aks%256F_cetonkyKEY=&;+ ", max_size=60), st.booleans())
def test_strip_query_leaves_no_credential(text: str, query_key: bool) -> None:
    """However it is spelled, what another parser reads from the stripped query has no credential; others stay."""
    before = parse_qsl(text, keep_blank_values=True, separator="&")
    names = {"access_token", "key"} if query_key else {"access_token"}

    stripped = strip_query(text.encode(), query_key=query_key) or b""

    after = parse_qsl(stripped.decode(), keep_blank_values=True, separator="&")
    assert after == [member for member in before if member[0] not in names]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"Authorization", b"x-api-key", b"API-KEY", b"x-goog-api-key", b"Host"]),
            st.one_of(st.binary(max_size=40), st.binary(max_size=20).map(lambda value: b"Bearer " + value)),
        ),
        max_size=4,
    ),
    st.none() | st.binary(max_size=40) | st.binary(max_size=20).map(lambda value: b"access_token=" + value),
    st.booleans(),
    st.booleans(),
)
def test_credential_of_arbitrary_bytes(
    fields: list[tuple[bytes, bytes]], query: bytes | None, query_key: bool, query_token: bool
) -> None:
    """Whatever bytes come, the result is visible ASCII, nothing, or a refusal of ours."""
    try:
        found = find_credential(head(*fields, query=query), query_key=query_key, query_token=query_token)
    except (InvalidRequestError, InvalidTokenError):
        found = None
    if found is not None:
        token = only_bearer(head(*fields, query=query))
        assert token is None or token.strip(b" \t") == found.encode()
    assert found is None or (found.isascii() and found.isprintable() and " " not in found and found)
    strip_query(query, query_key=query_key)
