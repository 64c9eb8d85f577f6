"""Which fields cross, and which never do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.model import FieldIndex
from proxy.protocol import header_fields as rules
from proxy.protocol.header_fields import CREDENTIALS, IDENTITY, VIA, Added, fold, is_loop, single, values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.errors import Field

KEY: Field = (b"Authorization", b"Bearer vendor")
TOKEN = b"caller-token-canary"


def to_upstream(fields: Sequence[Field], added: Sequence[Field]) -> list[Field]:
    """What the upstream gets."""
    return list(rules.to_upstream(fields, FieldIndex(fields), Added(added)))


def to_client(fields: Sequence[Field]) -> list[Field]:
    """What the client gets."""
    return rules.to_client(fields, FieldIndex(fields))


def names(fields: list[Field]) -> list[bytes]:
    """The names alone."""
    return [name for name, _ in fields]


@pytest.mark.parametrize(
    "name",
    [
        "Connection",
        "Keep-Alive",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
        "Proxy-Connection",
        "Proxy-Authorization",
        "Proxy-Authenticate",
        "HTTP2-Settings",
        "Host",
        "Content-Length",
        "Expect",
        "Accept-Encoding",
        "Cookie",
        "Origin",
        "Referer",
        "Sec-Fetch-Mode",
        "Sec-WebSocket-Key",
        "Forwarded",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Prefix",
        "X-Real-IP",
        "X-Upstream",
        "X-Upstream-Authorization",
        "X-Upstream-Anything",
        "X-Forward-Sse-Id",
        "X-Forward-Sse-Code",
        "Authorization",
        "X-Api-Key",
        "Api-Key",
        "X-Goog-Api-Key",
    ],
)
def test_to_upstream_drops(name: str) -> None:
    """What belongs to the connection, the browser, or us goes no further, in any spelling (B32-B35, C7, C8)."""
    for spelling in {name, name.lower(), name.upper(), name.replace("-", "_"), name.swapcase().replace("-", "_")}:
        assert to_upstream([(spelling.encode(), b"v")], ()) == [IDENTITY, VIA]


@pytest.mark.parametrize(
    "name",
    [
        "Content-Type",
        "Accept",
        "User-Agent",
        "X-Request-Id",
        "traceparent",
        "tracestate",
        "anthropic-version",
        "anthropic-beta",
        "OpenAI-Organization",
        "X-DashScope-SSE",
        "x-goog-api-client",
        "x-stainless-lang",
        "Idempotency-Key",
        "X-Made-Up",
        "Accept-Language",
        "Security",
        "X-Forward",
    ],
)
def test_to_upstream_passes(name: str) -> None:
    """Vendors' fields, trace context and whatever we do not know pass as they came (RFC 9110 §5.1)."""
    assert to_upstream([(name.encode(), b"v \xe9")], ())[0] == (name.encode(), b"v \xe9")


def test_to_upstream_order() -> None:
    """Field lines of one name keep their order, and are not folded into one (RFC 9110 §5.3)."""
    fields = [(b"X-A", b"1"), (b"X-B", b"2"), (b"x-a", b"3"), (b"X-A", b"1")]

    assert to_upstream(fields, ())[:4] == fields


def test_to_upstream_connection_names_fields() -> None:
    """Every field that Connection names goes, before it and after it; ours stay (B31)."""
    fields = [
        (b"X-Before", b"1"),
        (b"Connection", b"close, X-Before,authorization ,, x-request-id"),
        (b"connection", b"\tX_After, host, via, accept-encoding, content-type"),
        (b"X-After", b"1"),
        (b"X-Request-Id", b"1"),
        (b"Via", b"1.0 old"),
        (b"X-Stays", b"1"),
    ]
    added = (KEY, (b"Content-Type", b"ours"))

    assert to_upstream(fields, added) == [(b"X-Stays", b"1"), IDENTITY, VIA, *added]


def test_to_upstream_added_replaces() -> None:
    """What we add stands alone under its name, however the client spelled it."""
    fields = [(b"openai_organization", b"theirs"), (b"OPENAI-ORGANIZATION", b"theirs"), (b"X-Stays", b"1")]
    added = ((b"OpenAI-Organization", b"ours"), KEY)

    assert to_upstream(fields, added) == [(b"X-Stays", b"1"), IDENTITY, VIA, *added]


def test_to_upstream_via_appended() -> None:
    """Our Via comes after those of who was there before (RFC 9110 §7.6.3)."""
    fields = [(b"Via", b"1.0 fred, 1.1 p.example"), (b"via", b"2 cdn")]

    assert to_upstream(fields, ())[-4:] == [*fields, IDENTITY, VIA]


def test_to_upstream_operators_accept_encoding() -> None:
    """There is one Accept-Encoding, the operator's where they set one."""
    added = ((b"accept-encoding", b"gzip"),)

    assert to_upstream([(b"Accept-Encoding", b"br")], added) == [VIA, *added]


SPELLINGS = st.builds(
    lambda name, upper, underscore: bytes(
        b"_"[0] if letter == ord("-") and underscore else ord(chr(letter).upper()) if (upper >> index) & 1 else letter
        for index, letter in enumerate(name)
    ),
    st.sampled_from(sorted(CREDENTIALS)),
    st.integers(0, 2**24),
    st.booleans(),
)
OTHERS = st.tuples(
    st.sampled_from([b"Connection", b"X-A", b"Accept", b"Via", b"Cookie", b"connection"]),
    st.sampled_from([b"x-a, authorization", b"close", b"x-api-key", b"1.1 x", b""]),
)
CARRIERS = st.tuples(SPELLINGS, st.sampled_from([TOKEN, b"Bearer " + TOKEN, b"bearer  " + TOKEN]))


@given(st.lists(st.one_of(OTHERS, CARRIERS), max_size=12), st.booleans())
def test_to_upstream_never_the_callers_token(fields: list[Field], has_key: bool) -> None:
    """A token in any credential field, however spelled, beside any Connection, is not in what goes out (A65, A66)."""
    added = (KEY,) if has_key else ()

    passed = to_upstream(fields, added)

    assert not [field for field in passed if TOKEN in field[1]]
    assert [field for field in passed if fold(field[0]) in CREDENTIALS] == list(added)
    assert names(passed).count(b"Accept-Encoding") == 1


@pytest.mark.parametrize(
    "name",
    [
        "Connection",
        "Keep-Alive",
        "Transfer-Encoding",
        "Trailer",
        "Upgrade",
        "TE",
        "Proxy-Connection",
        "Proxy-Authenticate",
        "Content-Length",
        "Set-Cookie",
        "Server",
        "Alt-Svc",
        "Access-Control-Allow-Origin",
        "Access-Control-Expose-Headers",
        "X-Accel-Buffering",
        "X-Accel-Redirect",
        "Cache-Control",
        "X-Forward-Sse-Code",
        "X-Forward-Sse-Id",
    ],
)
def test_to_client_drops(name: str) -> None:
    """What is the connection's, ours, or another origin's is not passed back (E27, G10)."""
    assert to_client([(name.encode(), b"v"), (name.lower().encode(), b"v")]) == []


@pytest.mark.parametrize(
    "name",
    ["Content-Type", "Content-Encoding", "Retry-After", "Date", "X-Request-Id", "request-id", "WWW-Authenticate"],
)
def test_to_client_passes(name: str) -> None:
    """The upstream's own end-to-end fields come as they are, doubled ones in order."""
    fields = [(name.encode(), b"1"), (b"X-B", b"2"), (name.encode(), b"3")]

    assert to_client(fields) == fields


def test_to_client_connection_names_fields() -> None:
    """A field that the upstream's Connection names is not passed on either (E26)."""
    fields = [(b"X-Secret", b"1"), (b"Connection", b"x-secret"), (b"X-Stays", b"1")]

    assert to_client(fields) == [(b"X-Stays", b"1")]


@pytest.mark.parametrize(
    ("name", "renamed"),
    [
        (b"X-RateLimit-Limit-Requests", b"x-upstream-ratelimit-limit-requests"),
        (b"x-ratelimit-reset-tokens", b"x-upstream-ratelimit-reset-tokens"),
        (b"RateLimit", b"x-upstream-ratelimit"),
        (b"RateLimit-Policy", b"x-upstream-ratelimit-policy"),
        (b"ratelimit-remaining", b"x-upstream-ratelimit-remaining"),
        (b"anthropic-ratelimit-requests-limit", b"anthropic-ratelimit-requests-limit"),
        (b"RateLimited", b"RateLimited"),
    ],
)
def test_to_client_rate_limits(name: bytes, renamed: bytes) -> None:
    """The upstream's limits never come under the names of ours."""
    assert to_client([(name, b"7")]) == [(renamed, b"7")]


@pytest.mark.parametrize(
    ("value", "loops"),
    [
        (b"1.1 forward-sse", True),
        (b"1.0 fred, 1.1 Forward-SSE (comment)", True),
        (b"HTTP/1.1  forward-sse", True),
        (b"1.1 forward-sse-2", False),
        (b"1.1 p.example, 1.1 other", False),
        (b"forward-sse 1.1", False),
        (b"", False),
        (b",,", False),
    ],
)
def test_is_loop(value: bytes, loops: bool) -> None:
    """A request that we have signed before is known again (B34)."""
    assert is_loop(FieldIndex([(b"X", b"1.1 forward-sse"), (b"via", value)])) is loops


def test_is_loop_own_output() -> None:
    """What we send out is a loop where it comes back."""
    assert is_loop(FieldIndex(to_upstream([(b"Via", b"1.0 fred")], ())))


def test_single_and_values() -> None:
    """A field is found whatever its case, and not under another spelling."""
    fields = [(b"X_Upstream", b"no"), (b"x-upSTREAM", b" a "), (b"X-Upstream", b"b")]

    assert single(fields, b"x-upstream") == b" a "
    assert values(fields, b"x-upstream") == [b"a", b"b"]
    assert single(fields, b"other") is None
    assert values(fields, b"other") == []


def test_names_kept_bounded() -> None:
    """Names are judged alike whether they are kept or not, and only so many of them are kept, none of them long."""
    names = [b"x-made-up-%d" % number for number in range(3000)]
    long = [b"x-" + b"a" * 100, b"x-accel-" + b"a" * 100]

    for _ in range(2):
        assert to_client([(name, b"1") for name in [*names, *long]]) == [(name, b"1") for name in [*names, long[0]]]
        assert [name for name, _ in rules.relayed([(name, b"1") for name in long])][:2] == [
            name.decode() for name in long
        ]

    for kept in (rules._NAMES_TO_CLIENT, rules._TEXT_NAMES):
        assert len(kept) <= rules._MAX_NAMES
        assert max(map(len, kept)) <= rules._MAX_NAME_BYTES


def test_relayed_text() -> None:
    """Each value is decoded by itself: from UTF-8 where it is that, else from Latin-1; names keep their spelling."""
    fields = [(b"X-A", b"plain"), (b"x-B", "\u00fc".encode()), (b"X-c", b"\xfc")]

    assert rules.relayed(fields)[:3] == [("X-A", "plain"), ("x-B", "\u00fc"), ("X-c", "\u00fc")]
    assert rules.relayed(fields[:2])[:2] == [("X-A", "plain"), ("x-B", "\u00fc")]
