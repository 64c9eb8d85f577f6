"""Taking access tokens apart."""

from __future__ import annotations

import binascii
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.auth.tokens import MAX_TOKEN_CHARS, MalformedTokenError, parse
from tests.auth.auth_support import segment

HEADER = {"alg": "RS256"}
SIGNATURE = segment(b"signature")


def unsigned(header: object, payload: object) -> str:
    return f"{segment(header)}.{segment(payload)}.{SIGNATURE}"


def test_parse_rfc7515_example() -> None:
    """The token of RFC 7515 §3.3 comes apart as the RFC says."""
    token = (
        "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9"
        ".eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
        ".dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    )

    jws = parse(token)

    assert (jws.algorithm, jws.kid) == ("HS256", None)
    assert jws.claims == {"iss": "joe", "exp": 1300819380, "http://example.com/is_root": True}
    assert jws.signing_input.decode() == token.rpartition(".")[0]
    assert jws.signature[:4] == bytes([116, 24, 223, 180])


@pytest.mark.parametrize(
    "typ", ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt", "application/jwt", "JOSE", "Bearer"]
)
def test_parse_type_of_an_access_token(typ: str) -> None:
    """A `typ` that says nothing else than "a token" is taken, whatever its case."""
    assert parse(unsigned({"alg": "RS256", "typ": typ}, {})).algorithm == "RS256"


@pytest.mark.parametrize(
    "parameters",
    [
        {"alg": None},
        {"alg": 5},
        {"alg": ["RS256"]},
        {"alg": {}},
        {"kid": 5},
        {"kid": ["a"]},
        {"kid": None},
        {"typ": 5},
        {"typ": "dpop+jwt"},
        {"typ": "application/logout+JWT"},
        {"crit": ["x"]},
        {"crit": []},
        {"crit": "b64"},
        {"crit": None},
        {"b64": False},
        {"b64": True},
        {"zip": "DEF"},
        {"enc": "A256GCM"},
        {"cty": "JWT"},
    ],
    ids=repr,
)
def test_parse_header_parameter_refused(parameters: dict[str, object]) -> None:
    """Parameters of the wrong type, or that ask for a processing that is not done, make the token unreadable."""
    with pytest.raises(MalformedTokenError):
        parse(unsigned({**HEADER, **parameters}, {}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'"RS256"',
        b"null",
        b"\xff{}",
        b"\xef\xbb\xbf" + json.dumps(HEADER).encode(),
        json.dumps(HEADER).encode("utf-16"),
        json.dumps(HEADER).encode("utf-32-le"),
        b'{"alg":"RS256","alg":"RS256"}',
        b'{"alg":"RS256","x":{"a":1,"a":1}}',
        b'{"alg":"RS256","\\u0061lg":"none"}',
        b'{"alg":"RS256","x":NaN}',
        b'{"alg":"RS256","x":-Infinity}',
        b'{"alg":"RS256","x":' + b"9" * 5000 + b"}",
        b'{"alg":"RS256"} x',
        # Deeper than any Python follows; how deep that is differs between them.
        b'{"alg":"RS256","x":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    ],
)
def test_parse_json_refused(data: bytes) -> None:
    """Header and payload are one JSON object in UTF-8 without duplicates, or the token is unreadable."""
    for token in (unsigned(data, {}), unsigned(HEADER, data)):
        with pytest.raises((ValueError, RecursionError)):
            parse(token)


GOOD = unsigned(HEADER, {"iss": "i"})


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        GOOD.rpartition(".")[0],
        GOOD.rpartition(".")[0] + ".",
        GOOD + ".",
        GOOD + ".a.b",
        "." * 100_000,
        GOOD + "=",
        GOOD + "\n",
        " " + GOOD,
        GOOD.replace(".", ". "),
        GOOD[:-1] + "!",
        GOOD + "A",
        GOOD[:-4] + "+/+/",
        GOOD[:-1] + "\uff45",
        json.dumps({"payload": "e30", "signatures": []}),
    ],
)
def test_parse_form_refused(token: str) -> None:
    """Anything but three segments of canonical base64url is unreadable."""
    with pytest.raises((MalformedTokenError, binascii.Error)):
        parse(token)


def test_parse_longest_token() -> None:
    """A token of the longest length is read, one that is longer is not looked at."""
    without = unsigned(HEADER, {}).rpartition(".")[0] + "."
    longest = without + "A" * ((MAX_TOKEN_CHARS - len(without)) // 4 * 4)
    assert parse(longest).signature.count(0) == len(parse(longest).signature)
    with pytest.raises(MalformedTokenError, match="too long"):
        parse(longest + "AAAA")


def test_parse_base64url_not_canonical() -> None:
    """Bits that decode to nothing must be zero, so that one token has one text."""
    token = GOOD.rpartition(".")[0] + "."
    assert parse(token + "AA").signature == b"\0"
    with pytest.raises(ValueError, match="canonical"):
        parse(token + "AB")


@given(st.text() | st.lists(st.text("ABab01_-=+/", max_size=20), min_size=2, max_size=4).map(".".join))
def test_parse_arbitrary_text(text: str) -> None:
    """No text raises anything but what the caller catches."""
    with pytest.raises((ValueError, RecursionError)):
        parse(text)
