"""Judging the claims of a token."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.auth.issuers import Claims, Issuer, verify
from proxy.auth.key_sets import StaticKeySet
from proxy.auth.keys import secret_key
from proxy.auth.tokens import parse
from proxy.errors import ExpiredTokenError, InsufficientScopeError, InvalidTokenError, ProxyError
from tests.auth.auth_support import NOW, SECRET, claims, token

NAME = "https://id.example.com/"
KEY = secret_key(SECRET, ["HS256"])


def issuer(**settings: Any) -> Issuer:
    usual: dict[str, Any] = {
        "issuer": NAME,
        "audiences": ("llm", "llm-2"),
        "algorithms": ("HS256",),
        "keys": StaticKeySet(KEY),
    }
    return Issuer(**{**usual, **settings})


def judge(settings: dict[str, Any] | None = None, **members: Any) -> Claims:
    """The verdict on a well signed token with these claims, at `NOW`."""
    text = token(claims(NAME, **members), SECRET, "HS256")
    return verify(parse(text), issuer(**settings or {}), [KEY], NOW)


def test_claims_good() -> None:
    """A good token names its user, plan and end."""
    assert judge(plan="pro") == Claims("alice", ("pro",), NOW + 600)
    assert judge() == Claims("alice", (), NOW + 600)
    assert judge({"user_claim": "https://example.com/uid"}, **{"https://example.com/uid": "u"}).user == "u"
    assert judge({"plan_claim": "tier"}, tier="pro", plan=5).plan_names == ("pro",)
    assert judge({"plan_claim": None}, plan=5).plan_names == ()


@pytest.mark.parametrize(
    "members",
    [
        {"aud": "llm-2"},
        {"aud": ["other", "llm"]},
        {"exp": NOW + 0.5},
        {"exp": NOW - 29},
        {"exp": NOW + 50 * 365 * 86400},
        {"nbf": NOW + 30},
        {"iat": NOW + 30},
        {"iat": ...},
        {"iat": 0},
        {"iat": None},
        {"nbf": None},
        {"plan": None},
        {"sub": "x" * 256},
        {"sub": "*:{}'\" "},
        {"sub": "e\u0301\u200f"},
    ],
    ids=repr,
)
def test_claims_at_the_edge(members: dict[str, Any]) -> None:
    """What is just good enough is good."""
    assert judge(**members).user


BAD_TIMES: list[object] = ["1700000600", -1, 2**63, 253402300800, True, [], {}, [NOW], -0.5]
BAD_VALUES: dict[str, list[object]] = {
    "iss": [..., None, "", 5, [NAME], NAME[:-1], NAME + "/", NAME.upper(), "https://id"],
    "aud": [..., None, "", 5, {}, [], "LLM", "ll", "llm ", ["LLM"], ["llm", 5], {"llm": 1}, [["llm"]]],
    "exp": [..., None, *BAD_TIMES],
    "nbf": BAD_TIMES,
    "iat": BAD_TIMES,
    "sub": [..., None, "", 5, True, ["a"], {}, "x" * 257, "a\0", "a\n", "a\rb", "a\x85", "\u2028", "\ud800"],
    "plan": [5, 0, {}, True, False, ["pro", 5], ["pro", ["pro"]], [{}]],
    "scope": [5, True, {}, ["llm.stream", 5]],
    "scp": [5, {}, [None]],
    "jti": [5, 0, False, [], {}],
}


@pytest.mark.parametrize(
    "members",
    [
        *[{name: value} for name, values in BAD_VALUES.items() for value in values],
        {"nbf": NOW + 31},
        {"iat": NOW + 31},
    ],
    ids=repr,
)
def test_claims_invalid(members: dict[str, Any]) -> None:
    """A claim that is missing, of the wrong type, out of range or not exactly ours makes the token invalid."""
    with pytest.raises(InvalidTokenError):
        judge(**members)


@pytest.mark.parametrize("name", ["nbf", "iat", "plan", "scope", "scp", "jti"])
def test_claim_null(name: str) -> None:
    """A claim that may be absent may be null."""
    assert judge(**{name: None}).user == "alice"


NAMESPACED = {"https://example.com/plan": "pro"}


@pytest.mark.parametrize(
    ("claim", "members", "expected"),
    [
        ("plan", {"plan": ["basic", "pro"]}, ("basic", "pro")),
        ("plan", {"plan": [None, "pro"]}, ("pro",)),
        ("plan", {"plan": []}, ()),
        ("cognito:groups", {"cognito:groups": ["pro"]}, ("pro",)),
        ("https://example.com/plan", NAMESPACED, ("pro",)),
        ("https://example.com/plan", {**NAMESPACED, "https://example": {"com/plan": "free"}}, ("pro",)),
        ("app_metadata.plan", {"app_metadata": {"plan": "pro"}}, ("pro",)),
        ("app_metadata.plan", {"app_metadata": {"plan": "pro"}, "app_metadata.plan": "free"}, ("free",)),
        ("app_metadata.plan", {"app_metadata": {"plan": "pro"}, "app_metadata.plan": None}, ("pro",)),
        ("realm_access.roles", {"realm_access": {"roles": ["a", "pro"]}}, ("a", "pro")),
        ("resource_access.my.app.roles", {"resource_access": {"my.app": {"roles": ["pro"]}}}, ("pro",)),
        ("https://example.com/meta.plan", {"https://example.com/meta": {"plan": "pro"}}, ("pro",)),
        ("a.b.c", {"a": {"b": {"c": "pro"}}, "a.b": {}}, ("pro",)),
        ("app_metadata.plan", {}, ()),
        ("app_metadata.plan", {"app_metadata": None}, ()),
        ("app_metadata.plan", {"app_metadata": {}}, ()),
        ("app_metadata.plan", {"app_metadata": {"plan": None}}, ()),
        ("app_metadata.plan", {"app_metadata": "pro"}, ()),
        ("app_metadata.plan", {"app_metadata": 5}, ()),
        ("app_metadata.plan", {"app_metadata": [{"plan": "pro"}]}, ()),
        ("app_metadata.plan", {"plan": "pro"}, ()),
        (".plan.", {"plan": "pro", "": {"plan": "pro"}}, ()),
    ],
    ids=repr,
)
def test_plan_claim(claim: str, members: dict[str, object], expected: tuple[str, ...]) -> None:
    """The plan's claim is the one of that very name, else a path of members; what leads nowhere is an absent plan."""
    assert judge({"plan_claim": claim}, **members).plan_names == expected


@pytest.mark.parametrize("value", [5, True, {}, ["pro", 5]], ids=repr)
def test_plan_claim_of_the_wrong_type(value: object) -> None:
    """A plan that is neither a text nor a list of texts makes the token invalid, at the end of a path as well."""
    with pytest.raises(InvalidTokenError):
        judge({"plan_claim": "app_metadata.plan"}, app_metadata={"plan": value})


def test_plan_claim_of_many_members() -> None:
    """A path is followed in time that is linear in the token, however many ways its dots can be read in."""
    path = ".".join("a" * 1000)
    inner: dict[str, object] = {}
    for _ in range(200):
        inner = {"a": inner, "a.a": 5}
    assert judge({"plan_claim": path}, a=inner).plan_names == ()


@pytest.mark.parametrize(
    ("members", "is_good"),
    [
        ({"client_id": "llm", "aud": ...}, True),
        ({"client_id": "llm-2", "aud": "somebody else"}, True),
        ({"client_id": ["other", "llm"], "aud": 5}, True),
        ({"client_id": "other", "aud": "llm"}, False),
        ({"client_id": None, "aud": "llm"}, False),
        ({"client_id": 5, "aud": "llm"}, False),
        ({"client_id": ["llm", 5]}, False),
        ({"aud": "llm"}, False),
    ],
    ids=repr,
)
def test_audience_claim(members: dict[str, object], is_good: bool) -> None:
    """With another audience claim, that one must name an audience, and `aud` is not looked at."""
    if is_good:
        assert judge({"audience_claim": "client_id"}, **members).user == "alice"
    else:
        with pytest.raises(InvalidTokenError):
            judge({"audience_claim": "client_id"}, **members)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(42, "42"), (0, "0"), (-7, "-7"), (2**64, "18446744073709551616"), (10**255, "1" + "0" * 255), ("42", "42")],
)
def test_user_as_number(value: object, expected: str) -> None:
    """A whole number is its text where the user's claim is not `sub`."""
    assert judge({"user_claim": "user_id"}, user_id=value).user == expected


@pytest.mark.parametrize(
    "value", [True, False, 42.0, 1.5, 1e3, 10**256, 10**4000, None, [42]], ids=lambda v: repr(v)[:9]
)
def test_user_that_is_no_whole_number(value: object) -> None:
    """Booleans, fractions and numbers of too many digits name nobody."""
    with pytest.raises(InvalidTokenError):
        judge({"user_claim": "user_id"}, user_id=value)


@pytest.mark.parametrize("number", ["1e999", "9" * 400, "9" * 4000])
def test_claims_numbers_out_of_range(number: str) -> None:
    """Numbers that no float holds are invalid, not a crash."""
    text = token(f'{{"iss":"{NAME}","aud":"llm","sub":"a","exp":{number}}}'.encode(), SECRET, "HS256")
    with pytest.raises(InvalidTokenError):
        verify(parse(text), issuer(), [KEY], NOW)


@pytest.mark.parametrize(("age_s", "is_good"), [(1, True), (29, True), (30, False), (31, False)])
def test_claims_expired(age_s: float, is_good: bool) -> None:
    """A token is good until its leeway has passed, and then expired."""
    if is_good:
        assert judge(exp=NOW - age_s).user == "alice"
    else:
        with pytest.raises(ExpiredTokenError):
            judge(exp=NOW - age_s)


def test_claims_expired_and_wrong() -> None:
    """Only a token that was once good is called expired: not one that somebody else signed, or for somebody else."""
    with pytest.raises(InvalidTokenError):
        judge(exp=NOW - 100, aud="other")
    forged = token(claims(NAME, exp=NOW - 100), SECRET + "!", "HS256")
    with pytest.raises(InvalidTokenError):
        verify(parse(forged), issuer(), [KEY], NOW)


@pytest.mark.parametrize(
    ("members", "is_enough"),
    [
        ({"scope": "llm.stream"}, True),
        ({"scope": "openid llm.stream"}, True),
        ({"scope": ["openid", "llm.stream"]}, True),
        ({"scp": "llm.stream"}, True),
        ({"scp": ["llm.stream"]}, True),
        ({}, False),
        ({"scope": ""}, False),
        ({"scope": "llm.stream2"}, False),
        ({"scope": "LLM.STREAM"}, False),
        ({"scope": "llm.stream,openid"}, False),
        ({"scope": [], "scp": ["llm.stream"]}, False),
    ],
)
def test_scope_required(members: dict[str, object], is_enough: bool) -> None:
    """A required scope must be among the token's, exactly; without it the token is good and insufficient."""
    settings = {"required_scopes": ("llm.stream",)}
    if is_enough:
        assert judge(settings, **members).user == "alice"
    else:
        with pytest.raises(InsufficientScopeError):
            judge(settings, **members)


@pytest.mark.parametrize("scope", [None, 5, {"llm.stream": 1}, ["llm.stream", 5], [["llm.stream"]]])
def test_scope_malformed(scope: object) -> None:
    """A scope of the wrong type is an invalid token."""
    with pytest.raises(InvalidTokenError):
        judge({"required_scopes": ("llm.stream",)}, scope=scope)


def test_verify_without_a_key_or_with_several() -> None:
    """One of the keys must have signed it, whichever."""
    parsed = parse(token(claims(NAME), SECRET, "HS256"))
    other = secret_key(SECRET + "!", ["HS256"])
    assert verify(parsed, issuer(), [other, KEY], NOW).user == "alice"
    for keys in ([], [other]):
        with pytest.raises(InvalidTokenError):
            verify(parsed, issuer(), keys, NOW)
    with pytest.raises(InvalidTokenError):
        verify(parsed, issuer(algorithms=("HS512",)), [KEY], NOW)


@pytest.mark.parametrize(
    "settings",
    [
        {"issuer": ""},
        {"audiences": ()},
        {"audiences": ("",)},
        {"audience_claim": ""},
        {"user_claim": ""},
        {"algorithms": ()},
    ],
    ids=repr,
)
def test_issuer_that_could_not_judge(settings: dict[str, Any]) -> None:
    """An entry that would accept everyone, or no one, is refused when it is made."""
    with pytest.raises(ValueError, match=r"needs|no algorithms"):
        issuer(**settings)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["iss", "aud", "sub", "exp", "nbf", "iat", "plan", "scope", "scp"]), JSON))
def test_verify_arbitrary_claims(members: dict[str, object]) -> None:
    """Whatever JSON an issuer signs, the verdict is claims of the promised types or a refusal of ours."""
    try:
        verdict = judge({"required_scopes": ("s",)}, **{"scope": "s", **members})
    except ProxyError:
        return
    assert isinstance(verdict.user, str)
    assert verdict.user
    assert verdict.expires_at > NOW - 30
