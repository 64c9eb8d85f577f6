"""What browsers are told: exact origins, known names, nothing of the request but what was allowed beforehand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.model import FieldIndex
from proxy.protocol.cors import CorsPolicy, is_preflight, request_origin

STEADY = settings(max_examples=200)
APP = b"https://app.example.com"
LISTED = CorsPolicy(frozenset({APP.decode(), "http://localhost:5173"}), credentials=False, max_age_s=600)
EVERYONE = CorsPolicy(frozenset({"*"}), credentials=False, max_age_s=600)
OFF = CorsPolicy(frozenset(), credentials=False, max_age_s=600)

NOT_LISTED = [
    None,
    b"",
    b"null",
    b"*",
    b"https://app.example.com.evil.com",
    b"https://evilapp.example.com",
    b"http://app.example.com",
    b"https://app.example.com:444",
    b"https://app.example.com:443",
    b"https://APP.example.com",
    b"https://app.example.com/",
    b"https://app.example.com/path",
    b" https://app.example.com",
    b"https://app.example.com, https://evil.com",
    b"https://app.example.com\r\nX: 1",
    b"\xff",
]


def names(fields: tuple[tuple[bytes, bytes], ...], field: bytes) -> set[bytes]:
    return {name for name in dict(fields).get(field, b"").split(b", ") if name}


@pytest.mark.parametrize("origin", [APP, b"http://localhost:5173"])
def test_answer_listed_origin(origin: bytes) -> None:
    """A listed origin may read the answer and the fields that clients need; caches keep the origins apart."""
    fields = LISTED.answer_fields(origin)
    assert dict(fields)[b"Access-Control-Allow-Origin"] == origin
    assert dict(fields)[b"Vary"] == b"Origin"
    assert b"Access-Control-Allow-Credentials" not in dict(fields)
    assert len(dict(fields)) == len(fields)


@pytest.mark.parametrize("origin", NOT_LISTED)
def test_answer_other_origin(origin: bytes | None) -> None:
    """Whatever is not exactly a listed origin is granted nothing, but the answer still varies by origin."""
    assert LISTED.answer_fields(origin) == ((b"Vary", b"Origin"),)


@given(st.binary(max_size=40) | st.text(max_size=20).map(lambda tail: APP + tail.encode()))
@STEADY
def test_answer_never_echoes(origin: bytes) -> None:
    """No origin is ever echoed that is not listed."""
    granted = dict(LISTED.answer_fields(origin)).get(b"Access-Control-Allow-Origin")
    assert granted == (origin if origin == APP else None)


@pytest.mark.parametrize("origin", [None, b"null", b"https://any.example"])
def test_answer_every_origin(origin: bytes | None) -> None:
    """With `*` every answer is the same, so it does not vary."""
    fields = EVERYONE.answer_fields(origin)
    assert dict(fields)[b"Access-Control-Allow-Origin"] == b"*"
    assert b"Vary" not in dict(fields)


def test_answer_null_listed() -> None:
    """`null` is an origin like another for an operator who lists it."""
    policy = CorsPolicy(frozenset({"null"}), credentials=False, max_age_s=1)
    assert dict(policy.answer_fields(b"null"))[b"Access-Control-Allow-Origin"] == b"null"


def test_answer_without_origins() -> None:
    """Without configured origins nothing is said to browsers at all."""
    assert OFF.answer_fields(APP) == ()
    assert OFF.preflight_fields(APP, b"POST", None) == ()


def test_answer_exposed_fields() -> None:
    """A frontend may read every field that the proxy adds, by name, for `*` does not cover credentialed requests."""
    exposed = names(LISTED.answer_fields(APP), b"Access-Control-Expose-Headers")
    assert exposed >= {
        *(b"x-request-id", b"request-id", b"retry-after", b"retry-after-ms", b"x-should-retry"),
        *(b"ratelimit", b"ratelimit-policy", b"www-authenticate", b"traceparent", b"openai-processing-ms"),
        *(b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests"),
        *(b"x-upstream-ratelimit-limit-requests", b"x-upstream-ratelimit-reset-tokens"),
        *(b"x-forward-sse-id", b"x-forward-sse-code", b"anthropic-ratelimit-input-tokens-remaining"),
    }
    assert b"*" not in exposed


def test_credentials_are_allowed_by_configuration() -> None:
    """Credentials are allowed to listed origins alone, in answers and preflights."""
    policy = CorsPolicy(frozenset({APP.decode()}), credentials=True, max_age_s=600)
    for fields in (policy.answer_fields(APP), policy.preflight_fields(APP, b"POST", None)):
        assert dict(fields)[b"Access-Control-Allow-Credentials"] == b"true"
    assert b"Access-Control-Allow-Credentials" not in dict(policy.answer_fields(b"https://evil.com"))


@pytest.mark.parametrize("origins", [{"*"}, {"*", "https://app.example.com"}])
def test_credentials_for_everyone(origins: set[str]) -> None:
    """`*` with credentials is refused when the policy is made."""
    with pytest.raises(ValueError, match="every origin"):
        CorsPolicy(frozenset(origins), credentials=True, max_age_s=600)


def test_preflight_granted() -> None:
    """A browser that runs a vendor's SDK is granted its method and every name it asks for."""
    asked = (
        b"authorization,content-type,x-stainless-arch,x-stainless-helper-method,X-Stainless-OS,anthropic-version,"
        b"anthropic-dangerous-direct-browser-access,openai-organization,x-goog-api-key,x-goog-api-client,api-key,"
        b"x-api-key,x-dashscope-sse,last-event-id,cache-control,x-upstream,x-upstream-authorization,x-request-id,"
        b"content-encoding,traceparent,tracestate,idempotency-key,x-requested-with,user-agent,accept"
    )
    fields = LISTED.preflight_fields(APP, b"POST", asked)
    assert dict(fields)[b"Access-Control-Allow-Origin"] == APP
    assert dict(fields)[b"Access-Control-Max-Age"] == b"600"
    assert names(fields, b"Access-Control-Allow-Methods") >= {b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"}
    assert names(fields, b"Access-Control-Allow-Headers") == set(asked.lower().split(b","))
    assert b"Origin" in dict(fields)[b"Vary"].split(b", ")


@pytest.mark.parametrize("origin", NOT_LISTED)
def test_preflight_other_origin(origin: bytes | None) -> None:
    """An origin that is not listed is granted nothing."""
    fields = LISTED.preflight_fields(origin, b"POST", b"authorization")
    assert [name for name, _ in fields] == [b"Vary"]


@pytest.mark.parametrize("method", [b"TRACE", b"CONNECT", b"patch", b"", b"POST\r\nX: 1", b"*"])
def test_preflight_other_method(method: bytes) -> None:
    """A method that is not served is answered by those that are, with no names and nothing to keep."""
    fields = dict(LISTED.preflight_fields(APP, method, b"authorization"))
    assert method not in fields[b"Access-Control-Allow-Methods"].split(b", ")
    assert b"Access-Control-Allow-Headers" not in fields
    assert b"Access-Control-Max-Age" not in fields


@pytest.mark.parametrize(
    ("asked", "granted"),
    [
        pytest.param(None, set(), id="none"),
        pytest.param(b"", set(), id="empty"),
        pytest.param(b"*", set(), id="star"),
        pytest.param(b"X-Forwarded-For, cookie, x-evil, authorization", {b"authorization"}, id="unknown names"),
        pytest.param(b"accept,Accept , ACCEPT,,", {b"accept"}, id="duplicates and empties"),
        pytest.param(b"x-stainless-a\r\nX-Evil: 1", set(), id="line ends"),
        pytest.param(b"x-stainless-a b, x-goog-(), openai-\xff, anthropic-", set(), id="not tokens"),
        pytest.param(b"x-stainless-" + b"a" * 49, set(), id="long name"),
        pytest.param(b"accept," * 64 + b"authorization", {b"accept"}, id="too many names"),
        pytest.param(b"authorization," + b"x" * 8_192, set(), id="8 KB"),
        pytest.param(b"access-control-request-private-network", set(), id="private network"),
    ],
)
def test_preflight_requested_names(asked: bytes | None, granted: set[bytes]) -> None:
    """Only known names are granted, however the list is written."""
    fields = LISTED.preflight_fields(APP, b"POST", asked)
    assert names(fields, b"Access-Control-Allow-Headers") == granted
    assert not any(b"private" in name.lower() for name, _ in fields)


@given(
    st.binary(max_size=60) | st.lists(st.sampled_from([b"accept", b"x-goog-", b"a", b"\r\n", b",", b" "])).map(b"".join)
)
@STEADY
def test_preflight_fields_stay_one_line(asked: bytes) -> None:
    """No requested name puts a byte into the answer that does not belong into a name."""
    for policy in (LISTED, EVERYONE):
        granted = dict(policy.preflight_fields(APP, b"GET", asked)).get(b"Access-Control-Allow-Headers", b"")
        assert set(granted) <= set(b"abcdefghijklmnopqrstuvwxyz0123456789-, ")
        assert len(granted) < 4_096


def test_preflight_every_origin() -> None:
    """With `*` the names are still given one by one, because `*` would not cover Authorization."""
    fields = EVERYONE.preflight_fields(b"null", b"POST", b"authorization,x-evil")
    assert dict(fields)[b"Access-Control-Allow-Origin"] == b"*"
    assert names(fields, b"Access-Control-Allow-Headers") == {b"authorization"}


@pytest.mark.parametrize(
    ("fields", "origin"),
    [
        ([(b"oRiGiN", APP)], APP),
        ([(b"Host", b"x")], None),
        ([(b"Origin", APP), (b"origin", APP)], None),
        ([(b"Origin", APP), (b"Origin", b"https://evil.com")], None),
    ],
)
def test_request_origin(fields: list[tuple[bytes, bytes]], origin: bytes | None) -> None:
    """A request has an origin only where it says so exactly once."""
    assert request_origin(FieldIndex(fields)) == origin


@pytest.mark.parametrize(
    ("method", "fields", "is_asking"),
    [
        ("OPTIONS", [(b"origin", APP), (b"access-control-request-method", b"POST")], True),
        ("OPTIONS", [(b"Origin", APP)], False),
        ("OPTIONS", [(b"Access-Control-Request-Method", b"POST")], False),
        ("OPTIONS", [], False),
        ("POST", [(b"Origin", APP), (b"Access-Control-Request-Method", b"POST")], False),
        ("options", [(b"Origin", APP), (b"Access-Control-Request-Method", b"POST")], False),
    ],
)
def test_is_preflight(method: str, fields: list[tuple[bytes, bytes]], is_asking: bool) -> None:
    """Only an OPTIONS with both of a browser's fields is a preflight; any other must authenticate."""
    assert is_preflight(method, FieldIndex(fields)) is is_asking


OWN = CorsPolicy(
    frozenset({APP.decode()}), credentials=True, max_age_s=600, headers=["X-App", "x-tenant"], expose=["X-Trace"]
)
ANY = CorsPolicy(frozenset({APP.decode()}), credentials=True, max_age_s=600, headers=["*"])


def granted(policy: CorsPolicy, requested: bytes) -> set[bytes]:
    return names(policy.preflight_fields(APP, b"POST", requested), b"Access-Control-Allow-Headers")


@pytest.mark.parametrize(
    ("policy", "requested", "expected"),
    [
        (OWN, b"x-app,X-Tenant,authorization,x-evil", {b"x-app", b"x-tenant", b"authorization"}),
        (LISTED, b"x-app,authorization", {b"authorization"}),
        (ANY, b"x-app, authorization,x_odd!", {b"x-app", b"authorization", b"x_odd!"}),
        (ANY, b"*,a*b", set()),
        (ANY, b"x y,x:y,\xff,,x\r\ny,(x)", set()),
        (ANY, b"x-" + b"n" * 200, set()),
        (ANY, b"x" * 4097, set()),
        (OWN, b"*", set()),
    ],
    ids=["own", "not own", "any", "star", "no names", "long name", "long list", "star of a list"],
)
def test_preflight_own_names(policy: CorsPolicy, requested: bytes, expected: set[bytes]) -> None:
    """The operator's names are granted beside the built-in ones; with `*` every one that is a name, within bounds."""
    assert granted(policy, requested) == expected


def test_preflight_any_name_many() -> None:
    """Of a list without end no more than 64 names are granted."""
    assert len(granted(ANY, b",".join(b"x%d" % number for number in range(500)))) == 64


@given(st.binary(max_size=200))
@STEADY
def test_preflight_any_name_of_any_bytes(requested: bytes) -> None:
    """Whatever is asked for, the answer holds names only: nothing that ends a line or begins another field."""
    answer = dict(ANY.preflight_fields(APP, b"POST", requested)).get(b"Access-Control-Allow-Headers", b"")
    assert set(answer) <= set(b"!#$%&'+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz, ")


def test_answer_own_exposed_names() -> None:
    """The operator's names may be read beside the built-in ones, once each."""
    exposed = dict(OWN.answer_fields(APP))[b"Access-Control-Expose-Headers"].split(b", ")
    assert b"x-trace" in exposed
    assert b"x-forward-sse-id" in exposed
    assert len(exposed) == len(set(exposed))
    assert b"x-trace" not in names(LISTED.answer_fields(APP), b"Access-Control-Expose-Headers")
