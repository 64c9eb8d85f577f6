"""Bodies as routing reads them, and envelopes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Field, InvalidRequestError, ProxyError
from proxy.protocol.envelope import Envelope, find_envelope, parse_envelope, read_json_object

URL = "https://a.example.com/v1"


def envelope(**members: Any) -> Envelope:
    """An envelope read from JSON, with a good target."""
    return parse_envelope(read_json_object(json.dumps({"targetUrl": URL, **members}).encode()))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"x",
        b"{",
        b"[]",
        b'"s"',
        b"null",
        b"1",
        b'{"a":1}{"b":2}',
        b"{'a':1}",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b"\xef\xbb\xbf{}",
        '{"model":"a"}'.encode("utf-16"),
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\\ud800"}',
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"a":' + b"9" * 5_000 + b"}",
    ],
    ids=range(20),
)
def test_read_json_object_unreadable(body: bytes) -> None:
    """What is no JSON object, or only to a lenient reader, is a malformed request and nothing worse (C1)."""
    with pytest.raises(InvalidRequestError):
        read_json_object(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","model":"b"}',
        b'{"model":"a","mod\\u0065l":"b"}',
        b'{"\\u006d\\u006F\\u0064\\u0065\\u006c":"a","model":"b"}',
        b'{"targetUrl":"a","targetUrl":"b"}',
        b'{"targetUrl":"a","t\\u0061rgetUrl":"b"}',
        b'{"targetUrl":"a","header":{},"header":{}}',
        b'{"targetUrl":"a","body":"","body":""}',
        b'{"targetUrl":"a","passcode":"","passcode":""}',
        b'{"targetUrl":"a","method":"get","method":"post"}',
    ],
)
def test_read_json_object_ambiguous(body: bytes) -> None:
    """A member that decides something stands there once, however it is spelled (C1)."""
    with pytest.raises(InvalidRequestError, match="twice"):
        read_json_object(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","tools":[{"model":"b"},{"model":"c"}]}',
        b'{"model":"\\u0041","messages":["\\"model\\" \\"model\\"", "model"]}',
        b'{"model":"a","x":1,"x":2}',
        b' {"model" : "a"}\n',
    ],
)
def test_read_json_object_readable(body: bytes) -> None:
    """The same word deeper down, in a text, or a doubled member that nobody reads, is no ambiguity."""
    assert read_json_object(body)["model"] == json.loads(body)["model"]


@given(
    st.binary(max_size=60)
    | st.text(max_size=40).map(lambda text: ('{"targetUrl":' + text + "}").encode("utf-8", "replace"))
)
def test_reading_total(body: bytes) -> None:
    """Any body is read or refused."""
    for read in (read_json_object, find_envelope):
        try:
            members = read(body)
            if members is not None:
                parse_envelope(members)
        except ProxyError:
            continue


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.fixed_dictionaries(
        {"targetUrl": JSON | st.just(URL)}, optional=dict.fromkeys(("method", "body", "header", "passcode"), JSON)
    )
)
def test_parse_envelope_total(members: dict[str, Any]) -> None:
    """Any members are an envelope or a refusal."""
    try:
        parsed = parse_envelope(members)
    except ProxyError:
        return

    assert parsed.method in {"GET", "POST"}
    assert all(b"\r" not in value and b"\n" not in value for _, value in parsed.fields)


def test_find_envelope() -> None:
    """An envelope is found however its member is spelled; anything else, JSON or not, is none."""
    assert find_envelope(b'{"targetUrl":1}') == {"targetUrl": 1}
    assert find_envelope(b'{"\\u0074argetUrl":1}') == {"targetUrl": 1}
    assert find_envelope(b'{"model":"a"}') is None
    assert find_envelope(b'{"a":{"targetUrl":1}}') is None
    assert find_envelope(b'["targetUrl"]') is None
    assert find_envelope(b'not json "targetUrl"') is None
    with pytest.raises(InvalidRequestError):
        find_envelope(b'{"targetUrl":1,"targetUrl":2}')


def test_parse_envelope_frontends() -> None:
    """The envelope that real frontends send: method in lower case, header and body as strings, a passcode."""
    parsed = envelope(
        method="post",
        body='{"prompt":"h\u00e9llo"}',
        header='{"authorization":"Bearer vendor","Content-Type":"application/json"}',
        passcode="key",
        unknown=[1],
    )

    assert parsed == Envelope(
        URL,
        "POST",
        '{"prompt":"h\u00e9llo"}'.encode(),
        ((b"authorization", b"Bearer vendor"), (b"Content-Type", b"application/json")),
        "key",
    )
    assert "vendor" not in repr(parsed)
    assert "key" not in repr(parsed)
    assert "prompt" not in repr(parsed)


def test_parse_envelope_defaults() -> None:
    """Without them, or with null, the method is post and the rest is empty."""
    empty = Envelope(URL, "POST", b"", ())

    assert envelope() == empty
    assert envelope(method=None, body=None, header=None, passcode=None) == empty
    assert envelope(header="") == empty


@pytest.mark.parametrize("target_url", [None, 5, [], {}, True, 1.5])
def test_parse_envelope_target_not_text(target_url: object) -> None:
    """A targetUrl that is no string is a malformed envelope, not a vendor body (C3)."""
    with pytest.raises(InvalidRequestError, match="targetUrl"):
        envelope(targetUrl=target_url)


@pytest.mark.parametrize(
    ("method", "expected"), [("get", "GET"), ("GET", "GET"), ("Post", "POST"), ("POST", "POST"), ("post", "POST")]
)
def test_parse_envelope_method(method: str, expected: str) -> None:
    """Get and post, in any case (C12)."""
    assert envelope(method=method).method == expected


@pytest.mark.parametrize(
    "method", ["CONNECT", "TRACE", "PUT", "", "POST ", "GET / HTTP/1.1\r\nX:", 5, ["get"], True, "po\u017ft"]
)
def test_parse_envelope_other_method(method: object) -> None:
    """Nothing else is a method (C12)."""
    with pytest.raises(InvalidRequestError, match="method"):
        envelope(method=method)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("", b""),
        ("\u00e9\u4f60\U0001f600\x00", "\u00e9\u4f60\U0001f600\x00".encode()),
        ({}, b"{}"),
        ({"b": [1, "\u4f60", 1.5], "a": None}, '{"b":[1,"\u4f60",1.5],"a":null}'.encode()),
    ],
)
def test_parse_envelope_body(body: object, expected: bytes) -> None:
    """A string goes as its UTF-8 bytes, an object as JSON with its members in order (C13)."""
    assert envelope(body=body).body == expected


@pytest.mark.parametrize("body", [5, [], True, 1.5])
def test_parse_envelope_other_body(body: object) -> None:
    """Nothing else is a body (C13)."""
    with pytest.raises(InvalidRequestError, match="body"):
        envelope(body=body)


def test_parse_envelope_half_surrogate() -> None:
    """Half a surrogate pair is refused, not a failure to encode it (C13)."""
    with pytest.raises(InvalidRequestError):
        envelope(body="\ud800")
    for body in ("\ud800", {"a": "\ud800"}):
        with pytest.raises(InvalidRequestError):
            parse_envelope({"targetUrl": URL, "body": body})


def test_parse_envelope_get_with_body() -> None:
    """A get has no body, and one that would be lost is refused (C14)."""
    assert envelope(method="get", body="").body == b""
    with pytest.raises(InvalidRequestError, match="get"):
        envelope(method="get", body="{}")


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "a b",
        "a:b",
        "a\r\nb",
        "a\n",
        "a\x00",
        "h\u00e9",
        "__proto__",
        "_x",
        "Host ",
        " Host",
        "a,b",
        "a(b)",
        "x" * 300,
        "\u017fec",
    ],
)
def test_parse_envelope_header_name(name: str) -> None:
    """A header's name is a token (C5)."""
    for header in ({name: "v"}, json.dumps({name: "v"})):
        with pytest.raises(InvalidRequestError, match="header"):
            envelope(header=header)


@pytest.mark.parametrize(
    "value",
    [
        "a\r\nX-Evil: 1",
        "a\n",
        "\r",
        "\x00",
        "\x7f",
        "\u010a",
        "\u560a",
        "\u00e9",
        "\x1b",
        5,
        True,
        None,
        [],
        {},
        1.5,
        "x" * 8193,
    ],
)
def test_parse_envelope_header_value(value: object) -> None:
    """A header's value is text that cannot end its line (C4, C6)."""
    for header in ({"X-A": value}, json.dumps({"X-A": value})):
        with pytest.raises(InvalidRequestError, match="header"):
            envelope(header=header)


@pytest.mark.parametrize(
    "header", [5, [], True, "x", "[]", "null", "5", '{"a":', '"{}"', '{"a":' * 2000, "x" * 200_000]
)
def test_parse_envelope_other_header(header: object) -> None:
    """A header is a JSON object, or one as a string."""
    with pytest.raises(InvalidRequestError):
        envelope(header=header)


@pytest.mark.parametrize(
    "header",
    [
        {"Authorization": "a", "authorization": "b"},
        {"X-A": "a", "x_a": "b"},
        '{"a":"1","a":"2"}',
        {f"x-{number}": "v" for number in range(101)},
        {f"x-{number}": "v" * 8000 for number in range(9)},
    ],
    ids=["case", "underscore", "string", "many", "large"],
)
def test_parse_envelope_header_bounds(header: object) -> None:
    """No field twice, in any spelling, and no more than a request may have (C6)."""
    with pytest.raises(InvalidRequestError, match="twice"):
        envelope(header=header)


@pytest.mark.parametrize("passcode", [5, [], {}, True])
def test_parse_envelope_other_passcode(passcode: object) -> None:
    """A passcode is a string."""
    with pytest.raises(InvalidRequestError, match="passcode"):
        envelope(passcode=passcode)


def test_parse_envelope_metadata_switches() -> None:
    """What opens a cloud's metadata service is dropped, in every spelling (C10)."""
    header = {
        "Metadata-Flavor": "Google",
        "metadata": "true",
        "X-aws-ec2-metadata-token": "t",
        "X_AWS_EC2_METADATA_TOKEN_TTL_SECONDS": "1",
        "X-Google-Metadata-Request": "True",
        "X-Stays": " v\t",
    }
    expected: tuple[Field, ...] = ((b"X-Stays", b"v"),)

    assert envelope(header=header).fields == expected
