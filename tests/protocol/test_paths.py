"""Only what nobody could read differently matches, and what matches is what is sent."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import InvalidRequestError, ProxyError, TargetNotAllowedError
from proxy.model import Origin
from proxy.protocol.paths import (
    MAX_TARGET_URL,
    TargetPattern,
    below,
    canonical_path,
    is_allowed,
    matches,
    member_name,
    merge_queries,
    own_path,
    parse_target,
    query_members,
    split_target,
    with_query,
    without_member,
)


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        (b"/v1/chat/completions", "/v1/chat/completions"),
        (b"/v1/a/b/c", "/v1/*"),
        (b"/v1/", "/v1/*"),
        (b"/v1beta/models/m:streamGenerateContent", "/v1beta/models/*:streamGenerateContent"),
        (b"/v1/mod%65ls", "/v1/models"),
        (b"/v1/a%20b", "/v1/*"),
        (b"/v1/gpt-4.1", "/v1/*"),
        (b"/v1/.well-known", "/v1/*"),
        (b"/v1/a..b", "/v1/*"),
        (b"/a/x/b/y/c", "/a/*/b/*/c"),
        (b"/v1/models/org%2Fname", "/v1/models/*"),
        (b"/v1/models/org%2fname", "/v1/models/org/name"),
        (b"/v1/models/org%2Fname%2F", "/v1/models/*"),
        (b"/v1%2fmodels", "/v1/models"),
    ],
)
def test_is_allowed_plain(path: bytes, pattern: str) -> None:
    """A plain path matches its glob, in which `*` spans slashes."""
    assert is_allowed(path, ["/other", pattern])


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/../admin",
        b"/v1/..",
        b"/v1/.",
        b"/v1/./x",
        b"/v1/%2e%2e/admin",
        b"/v1/%2E./admin",
        b"/v1/%2e",
        b"/v1/%252e%252e/admin",
        b"/v1/%2f..%2fadmin",
        b"/v1/a%2f%2e%2e%2fadmin",
        b"/v1/a%2f.",
        b"/v1/a%2f%2fb",
        b"/v1/%2fb",
        b"/v1/a%2f/b",
        b"/v1/a%252fb",
        b"/v1/a%25%32%66b",
        b"/v1/a%5c..%5cadmin",
        b"/v1/a%2fb%00",
        b"/v1/a%2fb;c",
        b"/v1/..%5cadmin",
        b"/v1/..\\admin",
        b"/v1\\..\\admin",
        b"/v1/..;/admin",
        b"/v1/a;b",
        b"/v1/a%3bb",
        b"/v1/a%00",
        b"/v1/a%0d%0aX:1",
        b"/v1/a%7f",
        b"/v1/a%3fb",
        b"/v1/a%23b",
        b"/v1/a%25b",
        b"/v1/a#b",
        b"/v1/a?b",
        b"//v1/x",
        b"/v1//x",
        b"/v1/x//",
        b"/v1/...",
        b"/v1/..%20",
        b"/v1/%20",
        b"/v1/a b",
        b"/v1/a\x00",
        b"/v1/a\r\nX: 1",
        b"/v1/\xc3\xa9",
        b"/v1/%c3%a9",
        b"/v1/%c0%ae%c0%ae/x",
        b"/v1/%",
        b"/v1/%2",
        b"/v1/%zz",
        b"/v1/%u002e",
        b"v1/x",
        b"",
    ],
)
def test_is_allowed_ambiguous(path: bytes) -> None:
    """What some server reads as another path is allowed by no pattern (B20, D17)."""
    assert not is_allowed(path, ["/v1/*"])
    assert not is_allowed(path, ["/v1/*", path.decode("latin-1")])


@pytest.mark.parametrize("path", [b"/v1/responses%2Fresp_1", b"/v1%2Fresponses%2fresp_1", b"/v1%2Ffiles"])
def test_is_allowed_encoded_slash_opens_nothing(path: bytes) -> None:
    """An encoded slash is held to the rules of a slash: it does not hide the path that it stands in."""
    assert not is_allowed(path, ["/v1/responses", "/v1/models/*"])


def test_is_allowed_case() -> None:
    """Paths have case (D17)."""
    assert not is_allowed(b"/V1/x", ["/v1/*"])


@given(st.binary(max_size=40).map(lambda tail: b"/v1/" + tail))
def test_canonical_path_is_stable(path: bytes) -> None:
    """A canonical path has no dots, doubled slashes or encodings left, and is its own canonical form."""
    canonical = canonical_path(path)

    if canonical is not None:
        assert not {".", ".."} & set(canonical.split("/"))
        assert "//" not in canonical
        assert "%" not in canonical
        assert canonical.isascii()
        assert canonical.isprintable()
        if " " not in canonical and re.fullmatch(r"[^\"<>^`{|}\[\]]*", canonical):
            assert canonical_path(canonical.encode()) == canonical


@given(st.lists(st.sampled_from(["a", ".", "/", "%2F", "%2f", "%2e", "%25", "%", "2F", "\\", " "]), max_size=14))
def test_canonical_path_of_an_encoded_slash(tail: list[str]) -> None:
    """A path with encoded slashes has the form, and so the permissions, of the path with plain ones, or none."""
    path = b"/x" + "".join(tail).encode()

    assert canonical_path(path) == canonical_path(re.sub(rb"%2[Ff]", b"/", path))


@given(st.text("ab/*", max_size=12), st.text("ab/", max_size=16))
def test_matches_is_a_glob(pattern: str, text: str) -> None:
    """`matches` gives what the regular expression with `.*` for each `*` would."""
    expected = re.fullmatch(".*".join(re.escape(part) for part in pattern.split("*")), text) is not None

    assert matches(text, pattern) is expected


def test_split_target() -> None:
    """Path and query come as they were; an empty query is not none."""
    assert split_target(b"/a/%7E?b=?c&d") == (b"/a/%7E", b"b=?c&d")
    assert split_target(b"/a") == (b"/a", None)
    assert split_target(b"/a?") == (b"/a", b"")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"*",
        b"a",
        b"http://evil/x",
        b"host:80",
        b"/a#b",
        b"/a?b#c",
        b"/a b",
        b"/a?b c",
        b"/a\r\nX:1",
        b"/a?\x00",
        b"/\xe9",
    ],
)
def test_split_target_malformed(raw: bytes) -> None:
    """What is not in origin form, or could end the request line, is refused (B15, B16)."""
    with pytest.raises(InvalidRequestError):
        split_target(raw)


def test_query_members() -> None:
    """Names and values are decoded to be read, and stay as they were to be sent."""
    query = b"%75pstream=a%2Fb&x&=&upstream=c&y=%20=1"

    assert query_members(query) == [(b"upstream", b"a/b"), (b"x", b""), (b"", b""), (b"upstream", b"c"), (b"y", b" =1")]
    assert without_member(query, b"upstream") == b"x&=&y=%20=1"
    assert without_member(b"upstream=a", b"upstream") is None
    assert without_member(None, b"upstream") is None
    assert query_members(None) == []
    assert (with_query(b"/a", None), with_query(b"/a", b"")) == (b"/a", b"/a?")


@pytest.mark.parametrize(
    ("own", "query", "expected"),
    [
        (b"alt=sse", None, b"alt=sse"),
        (b"alt=sse", b"", b"alt=sse"),
        (b"alt=sse", b"alt=json", b"alt=sse"),
        (b"alt=sse", b"%61lt=json&a%6ct&x=%2F&alt", b"alt=sse&x=%2F"),
        (b"alt=sse", b"Alt=json&alt.x=1", b"alt=sse&Alt=json&alt.x=1"),
        (b"%61pi-version=1&b", b"api-version=2&b=3&c=4", b"%61pi-version=1&b&c=4"),
        (b"a+b=1", b"a%20b=2&a+b=3&ab=4", b"a+b=1&ab=4"),
        (b"a=1", b"b=1&&b=2", b"a=1&b=1&&b=2"),
    ],
)
def test_merge_queries(own: bytes, query: bytes | None, expected: bytes) -> None:
    """The operator's members stand first and alone, by decoded name; the caller's others stay as they came."""
    names = frozenset(member_name(member) for member in own.split(b"&"))

    assert merge_queries(own, names, query) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/forward-sse/", b"/forward-sse"),
        (b"/forward-sse", b"/forward-sse"),
        (b"/forward-sse/tickets/", b"/forward-sse/tickets"),
        (b"/v1/models/", b"/v1/models"),
        (b"/healthz/", b"/healthz"),
        (b"/playground/", b"/playground"),
        (b"/forward-sse//", b"/forward-sse//"),
        (b"/v1/models//", b"/v1/models//"),
        (b"/openai/v1/models/", b"/openai/v1/models/"),
        (b"/", b"/"),
        (b"//", b"//"),
    ],
)
def test_own_path(path: bytes, expected: bytes) -> None:
    """One slash at the end of an own path is dropped, two are not, and a vendor's path stays as it is."""
    assert own_path(path) == expected


@pytest.mark.parametrize(
    ("base", "path", "expected"),
    [
        ("", "/v1/models", "/v1/models"),
        ("/v1", "/v1/models", "/models"),
        ("/compatible-mode", "/v1/models", "/v1/models"),
        ("/compatible-mode/v1", "/v1/chat/completions", "/chat/completions"),
        ("/api/v1", "/v1/embeddings", "/embeddings"),
        ("/api/v1", "/api/v1/services/aigc/x/generation", "/services/aigc/x/generation"),
        ("/v1beta", "/v1beta/models", "/models"),
        ("/v1beta", "/v1/models", "/v1/models"),
        ("/xv1", "/v1/models", "/v1/models"),
        ("/v1/x", "/v1/models", "/v1/models"),
    ],
)
def test_below(base: str, path: str, expected: str) -> None:
    """What a base URL ends in is not repeated."""
    assert below(base, path) == expected


@pytest.mark.parametrize(
    ("url", "origin", "path", "query"),
    [
        ("https://h.example/v1/x?a=b", Origin("https", "h.example", 443), b"/v1/x", b"a=b"),
        ("http://h.example:8080", Origin("http", "h.example", 8080), b"/", None),
        ("https://h.example?a", Origin("https", "h.example", 443), b"/", b"a"),
        ("HTTPS://H.Example./v1", Origin("https", "h.example", 443), b"/v1", None),
        ("https://h.example/v1#frag?x", Origin("https", "h.example", 443), b"/v1", None),
        (
            "https://h.example/v1?x=http://internal/@\\"[:-1] + "y",
            Origin("https", "h.example", 443),
            b"/v1",
            b"x=http://internal/@y",
        ),
        ("https://h.example/m/a:b?k=%0a%00", Origin("https", "h.example", 443), b"/m/a:b", b"k=%0a%00"),
        ("https://192.0.2.7/x", Origin("https", "192.0.2.7", 443), b"/x", None),
        ("http://[2001:DB8:0::1]:81/x", Origin("http", "2001:db8::1", 81), b"/x", None),
        ("https://xn--bcher-kva.example/", Origin("https", "xn--bcher-kva.example", 443), b"/", None),
    ],
)
def test_parse_target(url: str, origin: Origin, path: bytes, query: bytes | None) -> None:
    """A plain URL is taken apart once; fragment and final dot go, data in the query is data (D15, D19, D20)."""
    target = parse_target(url)

    assert (target.origin, target.path, target.query) == (origin, path, query)


@pytest.mark.parametrize(
    "url",
    [
        # the catalogue's D3, other notations of an address
        *[
            f"http://{host}/v1"
            for host in [
                "2130706433",
                "0177.0.0.1",
                "017700000001",
                "0x7f000001",
                "0x7f.1",
                "127.0x1",
                "0127.0.0.1",
                "010.0.0.1",
                "127.1",
                "0",
                "1.2.3.4.5",
                "256.1.1.1",
                "1.2.3.0x4",
                "example.0x",
                "0x",
                "[::1",
                "[::1%25eth0]",
                "[fe80::1%eth0]",
                "[::g]",
                "[]",
                "[1.2.3.4]",
                "::1",
            ]
        ],
        # the catalogue's D11, user information
        "https://allowed.com@evil.com/v1",
        "https://allowed.com%40evil.com/v1",
        "https://u:p@allowed.com/v1",
        "https://@allowed.com/v1",
        # the catalogue's D12, D15, hosts
        "https://allowed.com%2eevil.com/v1",
        "https://allowed..com/v1",
        "https://.allowed.com/v1",
        "https://allowed.com../v1",
        "https://al_lowed.com/v1",
        "https://-allowed.com/v1",
        "https:///v1",
        "https://./v1",
        f"https://{'a' * 64}.com/v1",
        f"https://{'a.' * 150}com/v1",
        # the catalogue's D13, ports
        *[
            f"https://allowed.com:{port}/v1"
            for port in ["0", "65536", "80a", "-1", "443:80", "", "0443", "+443", "4_43", "99999"]
        ],
        "https://[::1]443/v1",
        # the catalogue's D14, hosts beyond ASCII
        *[
            f"https://{host}/v1"
            for host in [
                "allowed\uff0ecom",
                "allowed\uff61com",
                "\uff11\uff12\uff17.0.0.1",
                "\u0430llowed.com",
                "fa\u00df.de",
                "\u017fub.com",
                "\u212aey.com",
            ]
        ],
        # the catalogue's D16, schemes
        *[
            "file:///etc/passwd",
            "gopher://allowed.com/",
            "ftp://allowed.com/",
            "data:text/plain,x",
            "javascript:alert(1)",
        ],
        *["ws://allowed.com/", "unix:/run/x", "http+unix://allowed.com/", "allowed.com/v1", "//allowed.com/v1"],
        *[
            "http:/allowed.com",
            "http:allowed.com",
            "http:\\\\allowed.com",
            "https:///allowed.com",
            "",
            "httpss://allowed.com",
        ],
        # the catalogue's D17, paths
        *[
            f"https://allowed.com{path}"
            for path in [
                "/v1/../admin",
                "/v1/%2e%2e/admin",
                "/v1/%252e%252e/x",
                "/v1/..;/x",
                "/v1%2f..",
                "/v1/a%2f..%2f..%2fb",
                "/v1/a%2f%2fb",
                "//v1",
                "/v1/./x",
                "/v1/%zz",
                "/v1/%2e",
            ]
        ],
    ],
)
def test_parse_target_refused(url: str) -> None:
    """A host, port, scheme or path that can be read in two ways is never allowed."""
    with pytest.raises(TargetNotAllowedError):
        parse_target(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://allowed.com/v1\r\nX: 1",
        "https://allowed.com/v1\n",
        "https://allowed.com/\tv1",
        "https://allowed.com/v1\x00",
        "https://allowed.com/v 1",
        " https://allowed.com/",
        "https://allowed.com: 443/",
        "https://allowed.com/v1%0d%0aX:1",
        "https://allowed.com/v1%00",
        "https://allowed.com%00.evil.com/",
        "https://allowed.com\\@evil.com/",
        "https://allowed.com/v1\\..\\",
        "https://allowed.com/\u2028",
        "https://allowed.com/\u00e9",
        "https://allowed.com/?q=\u00e9",
        "https://allowed.com/\ud800",
        "https://allowed\u200b.com/",
        "https://allowed\u3000.com/",
        "https://allowed.com/" + "a" * MAX_TARGET_URL,
    ],
)
def test_parse_target_malformed(url: str) -> None:
    """Characters that no URL has are a malformed request (C3, D18)."""
    with pytest.raises(InvalidRequestError):
        parse_target(url)


@given(
    st.one_of(
        st.text(max_size=60), st.text(st.characters(codec="ascii"), max_size=60).map(lambda tail: "https://" + tail)
    )
)
def test_parse_target_total(url: str) -> None:
    """Any text is a target or a refusal; a target's bytes stand in the text as they are sent."""
    try:
        target = parse_target(url)
    except ProxyError:
        return

    assert target.path.decode() in url or target.path == b"/"
    assert target.query is None or target.query.decode() in url
    assert canonical_path(target.path) is not None
    assert re.fullmatch(rb"[!-~]+", target.path + (target.query or b""))
    assert parse_target(f"{target.origin.scheme}://{target.origin.host_field.decode()}").origin == target.origin


@pytest.mark.parametrize(
    ("pattern", "url", "is_match"),
    [
        ("https://a.example.com/v1/*", "https://a.example.com/v1/x?y=z", True),
        ("https://a.example.com/v1/*", "https://A.EXAMPLE.COM.:443/v1/x", True),
        ("https://a.example.com/v1/*", "https://a.example.com/v2/x", False),
        ("https://a.example.com/v1/*", "https://a.example.com/V1/x", False),
        ("https://a.example.com/v1/*", "https://a.example.com/v1/org%2Fname", True),
        ("https://a.example.com/v1/run", "https://a.example.com/v1/run%2Fother", False),
        ("https://a.example.com/v1/*", "http://a.example.com/v1/x", False),
        ("https://a.example.com/v1/*", "https://a.example.com:8443/v1/x", False),
        ("https://a.example.com:8443/*", "https://a.example.com:8443/v1/x", True),
        ("https://a.example.com/*", "https://a.example.com.evil.com/", False),
        ("https://example.com/*", "https://evilexample.com/", False),
        ("https://example.com/*", "https://a.example.com/", False),
        ("https://example.com", "https://example.com", True),
        ("https://example.com", "https://example.com/x", False),
        ("https://*.example.com/*", "https://a.example.com/x", True),
        ("https://*.example.com/*", "https://a.example.com./x", True),
        ("https://*.example.com/*", "https://example.com/x", False),
        ("https://*.example.com/*", "https://a.b.example.com/x", False),
        ("https://*.example.com/*", "https://evilexample.com/x", False),
        ("https://a.example.com/*", "https://192.0.2.1/", False),
        ("http://192.0.2.1:81/*", "http://192.0.2.1:81/x", True),
        ("http://[2001:db8::1]/*", "http://[2001:db8:0::1]/x", True),
    ],
)
def test_target_pattern(pattern: str, url: str, is_match: bool) -> None:
    """Scheme, host and port are exact; `*.` is one label; only the path is a glob (D5, D12, D13, D16, D25)."""
    assert TargetPattern.parse(pattern).matches(parse_target(url)) is is_match


@pytest.mark.parametrize(
    "pattern",
    [
        "https://*/",
        "https://*.com/*",
        "https://a.*.com/",
        "*://a.com/",
        "https://a.com/?x",
        "https://a.com/#x",
        "ftp://a.com/",
        "a.com",
        "https://u@a.com/",
        "https://a.com/../x",
        "https://a.com/%2e",
        "https://a.com:*/",
        "https://*.1.2.3.4/",
        "https://*.[::1]/",
        "https://*",
        "https://",
    ],
)
def test_target_pattern_refused(pattern: str) -> None:
    """A pattern that is no exact host with a plain path is a fault of the file."""
    with pytest.raises(ValueError, match=r"must|stands"):
        TargetPattern.parse(pattern)
