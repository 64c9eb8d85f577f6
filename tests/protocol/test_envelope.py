"""Bodies as routing reads them, and envelopes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Field, InvalidRequestError, ProxyError
from proxy.protocol.envelope import Envelope, RoutingMembers, find_envelope, parse_envelope, read_body, read_passcode
from tests.steps import finish

URL = "https://a.example.com/v1"
# Longer than what is read in one piece, or by a library.
LONG = 200_000


def envelope(**members: Any) -> Envelope:
    """An envelope read from JSON, with a good target."""
    return parse(json.dumps({"targetUrl": URL, **members}))


def parse(text: str | bytes) -> Envelope:
    """The envelope that a text is."""
    members = finish(read_body(text.encode() if isinstance(text, str) else text)).envelope
    assert members is not None
    return finish(parse_envelope(members))


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","model":"b"}',
        b'{"model":"a","mod\\u0065l":"b"}',
        b'{"\\u006d\\u006F\\u0064\\u0065\\u006c":"a","model":"b"}',
        b'{"model":"a","x":{"model":1},"model":"b"}',
        b'{"targetUrl":"a","targetUrl":"b"}',
        b'{"targetUrl":"a","t\\u0061rgetUrl":"b"}',
        b'{"targetUrl":"a","header":{},"header":{}}',
        b'{"targetUrl":"a","body":"","body":""}',
        b'{"targetUrl":"a","passcode":"","passcode":""}',
        b'{"targetUrl":"a","method":"get","method":"post"}',
    ],
)
def test_read_body_ambiguous(body: bytes) -> None:
    """A member that decides something stands there once, however it is spelled (C1); the refusal names it."""
    for text in (body, body + b" " * LONG):
        with pytest.raises(InvalidRequestError, match=r"member (model|targetUrl|header|body|passcode|method) twice"):
            finish(read_body(text))


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","tools":[{"model":"b"},{"model":"c"}]}',
        b'{"model":"\\u0041","messages":["\\"model\\" \\"model\\"", "model"]}',
        b'{"model":"a","x":1,"x":2}',
        b' {"model" : "a"}\n',
        b'{"mod\\u0065l":"a"}',
    ],
)
def test_read_body_readable(body: bytes) -> None:
    """The same word deeper down, in a text, or a doubled member that nobody reads, is no ambiguity."""
    for text in (body, body + b" " * LONG):
        assert finish(read_body(text)).model == json.loads(body)["model"]


@pytest.mark.parametrize(
    "member",
    [
        b'"a":"\\ud800"',
        b'"a":"\\udc00\\ud800"',
        b'"a":1e999',
        b'"a":NaN',
        b'"a":[-Infinity,Infinity]',
        b'"a":' + b"9" * 5_000,
        b'"a":' + b"[" * 10_000 + b"]" * 10_000,
        b'"a":' + b'{"a":' * 400 + b"1" + b"}" * 400,
        b'"a":"\t\x00"',
        b'"a":"\\x"',
    ],
    ids=["half", "halves", "1e999", "nan", "infinity", "digits", "arrays", "objects", "control", "escape"],
)
def test_read_body_left_to_the_vendor(member: bytes) -> None:
    """What routing does not read is not judged: the vendor may take it."""
    for text in (b'{"model":"m",%b}' % member, b'\xef\xbb\xbf{%b,"model":"m"}' % member):
        assert finish(read_body(text)) == RoutingMembers("m")


@pytest.mark.parametrize("value", [b"5", b"[]", b"{}", b"true", b'"\\x"'])
def test_read_body_model_is_no_name(value: bytes) -> None:
    """A model that is no text is refused by its name."""
    for text in (b'{"model":%b}' % value, b'{"x":NaN,"model":%b}' % value):
        with pytest.raises(InvalidRequestError, match="model"):
            finish(read_body(text))


@pytest.mark.parametrize(
    ("body", "stream"),
    [
        (b'{"stream":true}', True),
        (b'{"stream":false}', False),
        (b'{"stream":null}', None),
        (b'{"stream":"true"}', None),
        (b'{"stream":1}', None),
        (b"{}", None),
        (b'{"x":{"stream":true}}', None),
        (b'{"stream":true,"stream":false}', None),
        (b'{"str\\u0065am":true}', True),
    ],
)
def test_read_body_stream(body: bytes, stream: bool | None) -> None:
    """Whether a stream is asked for, where the body says so once."""
    for text in (body, body + b" " * LONG):
        assert finish(read_body(text)).stream is stream


@given(
    st.binary(max_size=60)
    | st.text(max_size=40).map(lambda text: ('{"targetUrl":' + text + "}").encode("utf-8", "replace"))
)
def test_reading_total(body: bytes) -> None:
    """Any body is read or refused."""
    for is_named in (True, False):
        try:
            members = finish(find_envelope(body)) if is_named else finish(read_body(body)).envelope
            if members is not None:
                read_passcode(members)
                finish(parse_envelope(members))
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
        parsed = parse(json.dumps(members))
    except ProxyError:
        return

    assert parsed.method in {"GET", "POST", "PUT", "PATCH", "DELETE"}
    assert all(b"\r" not in value and b"\n" not in value for _, value in parsed.fields)


@given(JSON)
def test_parse_envelope_body_is_the_same_value(value: Any) -> None:
    """A body that is no string reaches the target as the value that it is."""
    body = envelope(body=value).body

    if value is None:
        assert body == b""
    elif isinstance(value, str):
        assert body == value.encode()
    else:
        assert repr(json.loads(body)) == repr(value)


def test_find_envelope() -> None:
    """An envelope is found however its member is spelled; anything else, JSON or not, is none."""
    for text in (b'{"targetUrl":1}', b'{"\\u0074argetUrl":1}', b"\n" * LONG + b'{"targetUrl":1}'):
        members = finish(find_envelope(text))
        assert members is not None
        assert members.value("targetUrl") == b"1"
    for text in (b'{"model":"a"}', b'{"a":{"targetUrl":1}}', b'["targetUrl"]', b'not json "targetUrl"', b" " * LONG):
        assert finish(find_envelope(text)) is None
    with pytest.raises(InvalidRequestError):
        finish(find_envelope(b'{"targetUrl":1,"targetUrl":2}'))


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
    ("method", "expected"),
    [
        ("get", "GET"),
        ("GET", "GET"),
        ("Post", "POST"),
        ("POST", "POST"),
        ("post", "POST"),
        ("put", "PUT"),
        ("Patch", "PATCH"),
        ("DELETE", "DELETE"),
    ],
)
def test_parse_envelope_method(method: str, expected: str) -> None:
    """Those that a target may list, in any case (C12); whether it does is routing's to see."""
    assert envelope(method=method).method == expected


@pytest.mark.parametrize(
    "method",
    ["CONNECT", "TRACE", "HEAD", "OPTIONS", "", "POST ", "GET / HTTP/1.1\r\nX:", 5, ["get"], True, "po\u017ft"],
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
        ("\ud83d\ude00" * LONG, "\U0001f600".encode() * LONG),
        ("\u4f60" * LONG, "\u4f60".encode() * LONG),
        ("x" * LONG, b"x" * LONG),
        ('\n\t"\\/', b'\n\t"\\/'),
        ({}, b"{}"),
        ({"b": [1, "\u4f60", 1.5], "a": None}, '{"b":[1,"\u4f60",1.5],"a":null}'.encode()),
        ([1, " ", {"a": 1}], b'[1," ",{"a":1}]'),
        ([], b"[]"),
        (5, b"5"),
        (1.5, b"1.5"),
        (True, b"true"),
        (False, b"false"),
        ([1, 2] * LONG, b"[" + b"1,2," * (LONG - 1) + b"1,2]"),
        (["\u4f60" * LONG], b'["' + "\u4f60".encode() * LONG + b'"]'),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_parse_envelope_body(body: object, expected: bytes) -> None:
    """A string goes as its UTF-8 bytes, any other value as JSON with its members in order (C13)."""
    assert envelope(body=body).body == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.50", b"1.50"),
        ("123456789012345678901234567890", b"123456789012345678901234567890"),
        ("[1e999, -0.0]", b"[1e999,-0.0]"),
        ("[NaN]", b"[NaN]"),
        ('{"a": 1, "a": 2}', b'{"a":1,"a":2}'),
        (r'["\ud800 \u00e9"]', rb'["\ud800 \u00e9"]'),
        (r'["\"  \\", "a\n"]', rb'["\"  \\","a\n"]'),
        ("[1 2]", b"[1 2]"),
    ],
)
def test_parse_envelope_body_as_written(text: str, expected: bytes) -> None:
    """Numbers, repeated members and what no UTF-8 can hold stay as they were written."""
    parsed = parse(f'{{"targetUrl":"{URL}","body":{text}}}')

    assert parsed.body == expected
    assert parsed.has_json_body


def test_parse_envelope_half_surrogate() -> None:
    """Half a surrogate pair in a text cannot be sent, wherever it stands; the refusal names the member (C13)."""
    for body in ("\ud800", "\udc00", "x" * LONG + "\ud800", "\ud83d" + "x" * LONG, "\ud800" * LONG):
        with pytest.raises(InvalidRequestError, match="body"):
            envelope(body=body)


def test_parse_envelope_control_characters() -> None:
    """Characters that should have been escaped are what they are."""
    assert parse(f'{{"targetUrl":"{URL}","body":"a\n\tb\\u00e9"}}').body == "a\n\tb\u00e9".encode()


@pytest.mark.parametrize("body", ["", "{}", {"a": 1}, [1], 5, True, None, "\ud800"])
def test_parse_envelope_get_with_body(body: object) -> None:
    """A get sends no body, whatever frontends put there (C14)."""
    parsed = envelope(method="get", body=body)

    assert (parsed.body, parsed.has_json_body) == (b"", False)


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
        "\ud800",
        [],
        {},
        ["a"],
        {"a": "b"},
        "x" * 8193,
    ],
)
def test_parse_envelope_header_value(value: object) -> None:
    """A header's value is text that cannot end its line (C4, C6); the refusal names the member."""
    for header in ({"X-A": value}, json.dumps({"X-A": value})):
        with pytest.raises(InvalidRequestError, match="member X-A of header"):
            envelope(header=header)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("null", None),
        ("true", b"true"),
        ("false", b"false"),
        ("5", b"5"),
        ("1.50", b"1.50"),
        ("1e3", b"1e3"),
        ("-0", b"-0"),
        ("12345678901234567890123", b"12345678901234567890123"),
    ],
)
def test_parse_envelope_header_scalar(value: str, expected: bytes | None) -> None:
    """A null is left out, numbers and booleans are their JSON text, as it was written."""
    header = f'{{"authorization":{value},"X-B":"b"}}'
    fields = ((b"X-B", b"b"),) if expected is None else ((b"authorization", expected), (b"X-B", b"b"))

    for written in (header, json.dumps(header)):
        assert parse(f'{{"targetUrl":"{URL}","header":{written}}}').fields == fields


@pytest.mark.parametrize(
    "header",
    [5, [], True, "x", "[]", "null", "5", '{"a":', '"{}"', '{"a":' * 2000, "x" * 200_000, {"a": "x" * 300_000}],
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
