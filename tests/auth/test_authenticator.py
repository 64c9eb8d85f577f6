"""From a credential to a principal: the whole way, with keys that need no network."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from proxy.auth.api_keys import ApiKeys
from proxy.auth.authenticator import Authenticator
from proxy.auth.issuers import Issuer
from proxy.auth.key_sets import StaticKeySet
from proxy.errors import AuthenticationError, ExpiredTokenError, InvalidTokenError
from proxy.model import Plan, Principal
from tests.auth.auth_support import NOW, SECRET, Clock, claims, jwk, keyring, pem, run, segment, signature, token

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

RSA, PSS, ES, ES384, ED, DEV = "https://rsa/", "https://pss/", "https://es/", "https://es384/", "https://ed/", "dev"
API_KEY = "fsse_ci-key"
JWT_SHAPED_API_KEY = "fsse_a.b.c"
DEFAULT, PRO = Plan("default"), Plan("pro")
# The order of P-256, for signatures at the edges of its field.
N256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def issuer(name: str, keys: StaticKeySet, *algorithms: str) -> Issuer:
    return Issuer(issuer=name, audiences=("llm",), algorithms=algorithms, keys=keys)


def build(*, clock: Clock | None = None, cache_entries: int = 100, **settings: Any) -> Authenticator:
    ring = keyring()
    issuers = [
        issuer(name, StaticKeySet.from_pem(pem(key), (algorithm,)), algorithm)
        for name, key, algorithm in [
            (RSA, ring.rsa, "RS256"),
            (PSS, ring.other_rsa, "PS256"),
            (ES, ring.p256, "ES256"),
            (ES384, ring.p384, "ES384"),
            (ED, ring.ed, "EdDSA"),
        ]
    ]
    issuers.append(issuer(DEV, StaticKeySet.from_secret(SECRET, ("HS256", "HS512")), "HS256", "HS512"))
    digests = [hashlib.sha256(key.encode()).hexdigest() for key in (API_KEY, JWT_SHAPED_API_KEY)]
    usual: dict[str, Any] = {
        "issuers": issuers,
        "api_keys": ApiKeys([(digests[0], "ci", "pro"), (digests[1], "cd", "gone")]),
        "plans": {"default": DEFAULT, "pro": PRO},
        "cache_entries": cache_entries,
        "now": clock or Clock(NOW),
    }
    return Authenticator(**{**usual, **settings})


@pytest.mark.parametrize(
    ("name", "key", "algorithm"),
    [
        (RSA, "rsa", "RS256"),
        (PSS, "other_rsa", "PS256"),
        (ES, "p256", "ES256"),
        (ES384, "p384", "ES384"),
        (ED, "ed", "EdDSA"),
    ],
)
def test_token_of_each_algorithm(name: str, key: str, algorithm: str) -> None:
    """A good token of each issuer is a principal of that issuer, with or without a kid and foreign parameters."""
    private_key = getattr(keyring(), key)
    attacker = {
        "jwk": jwk(keyring().other_rsa),
        "jku": "http://127.0.0.1:1/",
        "x5u": "http://127.0.0.1:1/",
        "x5c": ["AA"],
    }
    for parameters in ({}, {"kid": "../../dev/null"}, attacker):
        text = token(claims(name), private_key, algorithm, **parameters)
        assert run(build().authenticate(text)) == Principal(name, "alice", DEFAULT)


def test_token_of_hmac() -> None:
    """An HMAC issuer's tokens are good with each of its algorithms."""
    for algorithm in ("HS256", "HS512"):
        assert run(build().authenticate(token(claims(DEV, plan="pro"), SECRET, algorithm))) == Principal(
            DEV, "alice", PRO
        )


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (..., DEFAULT),
        (None, DEFAULT),
        ("gone", DEFAULT),
        ("", DEFAULT),
        ([], DEFAULT),
        (["gone", "PRO", ""], DEFAULT),
        ("pro", PRO),
        (["gone", "pro", "default"], PRO),
        (["default", "pro"], DEFAULT),
        ([None, "pro"], PRO),
    ],
    ids=repr,
)
def test_plan_of_a_token(plan: object, expected: Plan) -> None:
    """Absent and unknown plans are the default one; of a list it is the first that is configured."""
    assert run(build().authenticate(token(claims(DEV, plan=plan), SECRET, "HS256"))).plan == expected


def test_token_with_many_groups() -> None:
    """A token of 11 KiB and one of 48 KiB, as directories with many groups issue them, are verified and remembered."""
    for count, least in ((210, 11 << 10), (920, 48 << 10)):
        groups = [f"{number:08x}-1111-4222-8333-444455556666" for number in range(count)]
        text = token(claims(RSA, groups=groups, plan="pro"), keyring().rsa, "RS256")
        assert len(text) > least
        authenticator = build()
        assert run(authenticator.authenticate(text)) == Principal(RSA, "alice", PRO)
        assert authenticator.cached_principal(text.encode()) is not None


def confusion(secret: bytes) -> str:
    """A token for the RSA issuer, made by HMAC with something public as the secret."""
    return token(claims(RSA), secret, "HS256")


def es_signed(raw_signature: bytes) -> str:
    signing_input = f"{segment({'alg': 'ES256'})}.{segment(claims(ES))}"
    return f"{signing_input}.{segment(raw_signature)}"


def es_numbers(r: int, s: int) -> str:
    return es_signed(r.to_bytes(32, "big") + s.to_bytes(32, "big"))


def public(encoding: Encoding, public_format: PublicFormat, name: str = "rsa") -> bytes:
    data: bytes = getattr(keyring(), name).public_key().public_bytes(encoding, public_format)
    return data


def good(name: Any = RSA, **members: object) -> str:
    return token(claims(name, **members), keyring().rsa, "RS256")


def changed(text: str, part: int, value: str) -> str:
    parts = text.split(".")
    parts[part] = value
    return ".".join(parts)


def with_algorithm(algorithm: object, tail: str) -> str:
    return f"{segment({'alg': algorithm})}.{segment(claims(RSA))}.{tail}"


def der_signature() -> str:
    signing_input = f"{segment({'alg': 'ES256'})}.{segment(claims(ES))}"
    raw = signature("ES256", keyring().p256, signing_input)
    return es_signed(encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")))


def ed_with_large_s() -> str:
    """An Ed25519 signature with the group's order added to s: the same equation, another text (RFC 8032 §5.1.7)."""
    text = token(claims(ED), keyring().ed, "EdDSA")
    raw = base64.urlsafe_b64decode(text.rpartition(".")[2] + "==")
    order = 2**252 + 27742317777372353535851937790883648493
    large = int.from_bytes(raw[32:], "little") + order
    return changed(text, 2, segment(raw[:32] + large.to_bytes(32, "little")))


OTHER_ALGORITHMS: list[object] = ["none", "None", "nOnE", "NONE", None, "", 5, ["RS256"], {}, True]
OTHER_ISSUERS: list[object] = ["", "https://rsa", "https://rs", "https://rsa//", "key", 5, None, ["dev"], {}]
FORGERIES: dict[str, Callable[[], str]] = {
    **{
        f"alg {name!r}, signature {tail!r}": partial(with_algorithm, name, tail)
        for name, tail in product(OTHER_ALGORITHMS, ["", "AAAA"])
    },
    "HMAC with the PEM": lambda: confusion(pem(keyring().rsa)),
    "HMAC with the PEM, stripped": lambda: confusion(pem(keyring().rsa).strip()),
    "HMAC with PKCS1": lambda: confusion(public(Encoding.PEM, PublicFormat.PKCS1)),
    "HMAC with SSH": lambda: confusion(public(Encoding.OpenSSH, PublicFormat.OpenSSH)),
    "HMAC with DER": lambda: confusion(public(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)),
    "HMAC with the JWK": lambda: confusion(json.dumps(jwk(keyring().rsa)).encode()),
    "HMAC with nothing": lambda: confusion(b""),
    "HMAC with the EC key": lambda: token(
        claims(ES), public(Encoding.X962, PublicFormat.UncompressedPoint, "p256"), "HS256"
    ),
    "RS512 by an RS256 key": lambda: token(claims(RSA), keyring().rsa, "RS512"),
    "PS256 by an RS256 key": lambda: token(claims(RSA), keyring().rsa, "PS256"),
    "RS256 by a PS256 key": lambda: token(claims(PSS), keyring().other_rsa, "RS256"),
    "RS256 signature called PS256": lambda: token(claims(PSS), keyring().other_rsa, "RS256", header={"alg": "PS256"}),
    "ES384 called ES256": lambda: token(claims(ES), keyring().p384, "ES384", header={"alg": "ES256"}),
    "ES256 called ES384": lambda: token(claims(ES384), keyring().p256, "ES256", header={"alg": "ES384"}),
    "ES256K": lambda: token(claims(ES), keyring().k256, "ES256K"),
    "ES512": lambda: token(claims(ES), keyring().p521, "ES512"),
    "Ed25519 where EdDSA is configured": lambda: token(claims(ED), keyring().ed, "Ed25519"),
    **{f"ES256 r={r} s={s}": partial(es_numbers, r, s) for r, s in product((0, 1, N256 - 1, N256), repeat=2)},
    **{f"ES256 of {size} bytes": partial(es_signed, b"\1" * size) for size in (1, 63, 64, 65, 128)},
    "ES256 in DER": der_signature,
    "Ed25519 with a large s": ed_with_large_s,
    "Ed25519 of 63 bytes": lambda: changed(token(claims(ED), keyring().ed, "EdDSA"), 2, segment(b"\1" * 63)),
    "signature stripped": lambda: changed(good(), 2, ""),
    "signature truncated": lambda: good()[:-4],
    "signature prolonged": lambda: good() + "AAAA",
    "signature of another token": lambda: changed(good(sub="bob"), 2, good().rpartition(".")[2]),
    "payload changed": lambda: changed(good(), 1, segment(claims(RSA, sub="root"))),
    "header changed": lambda: changed(good(), 0, segment({"alg": "RS256", "typ": "jwt"})),
    "another key": lambda: token(claims(RSA), keyring().other_rsa, "RS256"),
    "another key with its jwk": lambda: token(claims(RSA), keyring().other_rsa, "RS256", jwk=jwk(keyring().other_rsa)),
    "another issuer's key": lambda: token(claims(RSA), SECRET, "HS256"),
    "another issuer's key, colliding kid": lambda: token(claims(PSS), keyring().rsa, "RS256", kid="1"),
    **{f"issuer {name!r}": partial(good, name) for name in OTHER_ISSUERS},
    "no issuer": lambda: good(iss=...),
    "no expiry": lambda: good(exp=...),
    "other audience": lambda: good(aud="other"),
    "10,000 audiences": lambda: good(aud=["x"] * 10_000),
    "crit": lambda: token(claims(RSA), keyring().rsa, "RS256", crit=["exp"], exp=1),
    "b64": lambda: token(claims(RSA), keyring().rsa, "RS256", b64=False, crit=["b64"]),
    "cty": lambda: token(claims(RSA), keyring().rsa, "RS256", cty="JWT"),
    "zip": lambda: token(claims(RSA), keyring().rsa, "RS256", zip="DEF"),
    "JWE": lambda: f"{segment({'alg': 'PBES2-HS256+A128KW', 'enc': 'A128GCM', 'p2c': 2**31})}.a.b.c.d",
    "JSON serialisation": lambda: json.dumps({"payload": segment(claims(RSA)), "protected": segment({"alg": "RS256"})}),
    "duplicate alg": lambda: token(claims(RSA), keyring().rsa, "RS256", header=b'{"alg":"none","alg":"RS256"}'),
    "duplicate sub": lambda: token(
        json.dumps(claims(RSA)).replace("}", ',"sub":"root"}').encode(), keyring().rsa, "RS256"
    ),
    "header nested 3,000 deep": lambda: f"{segment(b'[' * 3000)}.{segment({})}.AAAA",
    "payload nested 3,000 deep": lambda: f"{segment({'alg': 'RS256'})}.{segment(b'[' * 3000)}.AAAA",
    "infinite exp": lambda: token(
        json.dumps(claims(RSA, exp=0)).replace('"exp": 0', '"exp": Infinity').encode(), keyring().rsa, "RS256"
    ),
    "exp 1e999": lambda: token(
        json.dumps(claims(RSA, exp=0)).replace('"exp": 0', '"exp": 1e999').encode(), keyring().rsa, "RS256"
    ),
    "integer of 5,000 digits": lambda: token(b'{"exp":' + b"9" * 5000 + b"}", keyring().rsa, "RS256"),
    "padding": lambda: good() + "==",
    "newline": lambda: good() + "\n",
    "foreign byte within": lambda: good()[:-5] + "!" + good()[-5:],
    "64 KiB": lambda: good(x="x" * 49_152),
    "1 MiB": lambda: good(x="x" * 2**20),
    "10^5 dots": lambda: "." * 100_000,
    "two dots": lambda: "..",
    "one dot": lambda: "a.b",
    "not ASCII": lambda: "tök.en.",
    "lone surrogates": lambda: "\ud800.\udc00.\ud800",
    "API key, wrong": lambda: API_KEY + "x",
    "API key, its digest": lambda: hashlib.sha256(API_KEY.encode()).hexdigest(),
    "API key with NUL": lambda: API_KEY + "\0",
    "API key of 10 MB": lambda: "fsse_" + "x" * 10_000_000,
    "API key prefix before a good token": lambda: "fsse_" + good(),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_token_forged(name: str) -> None:
    """No forgery or malformation gets past, none is anything but an invalid token, and none is remembered."""
    text = FORGERIES[name]()
    authenticator = build()
    with pytest.raises(InvalidTokenError) as caught:
        run(authenticator.authenticate(text))
    assert caught.value.code == "invalid_token"
    assert authenticator.cached_principal(text.encode("utf-8", "surrogatepass")) is None
    assert caught.value.__cause__ is None


def test_api_key() -> None:
    """An API key is a principal of the issuer `key`; the shape of a JWT does not make it one."""
    authenticator = build()
    assert run(authenticator.authenticate(API_KEY)) == Principal("key", "ci", PRO)
    assert run(authenticator.authenticate(JWT_SHAPED_API_KEY)) == Principal("key", "cd", DEFAULT)
    assert authenticator.authenticate_api_key(API_KEY) == Principal("key", "ci", PRO)
    with pytest.raises(InvalidTokenError):
        authenticator.authenticate_api_key(good())


def test_api_key_without_prefix_shaped_as_a_token() -> None:
    """What looks like a token is never looked up as an API key: a failure in one way is final."""
    text = good(aud="other")
    digest = hashlib.sha256(text.encode()).hexdigest()
    with pytest.raises(InvalidTokenError):
        run(build(api_keys=ApiKeys([(digest, "mallory", "pro")])).authenticate(text))


def test_recall() -> None:
    """A token that was verified is recalled; one that was not, is not."""
    authenticator = build()
    text = good()
    assert authenticator.cached_principal(text.encode()) is None
    principal = run(authenticator.authenticate(text))
    assert authenticator.cached_principal(text.encode()) is principal
    assert authenticator.cached_principal(good(sub="bob").encode()) is None
    assert authenticator.cached_principal(text[:-1].encode()) is None


def test_recall_after_expiry() -> None:
    """A cached token is refused from the moment it would be refused if it came anew."""
    clock = Clock(NOW)
    authenticator = build(clock=clock)
    text = good(exp=NOW + 600)
    run(authenticator.authenticate(text))

    clock.now = NOW + 629.9
    assert authenticator.cached_principal(text.encode()) is not None
    clock.now = NOW + 630
    assert authenticator.cached_principal(text.encode()) is None
    with pytest.raises(ExpiredTokenError):
        run(authenticator.authenticate(text))
    clock.now = NOW  # a step of the clock brings nothing back from the cache
    assert authenticator.cached_principal(text.encode()) is None


def test_recall_after_key_change() -> None:
    """A change of the issuer's keys makes its cached tokens be verified again, and only its own."""
    ring = keyring()
    changing = StaticKeySet.from_pem(pem(ring.rsa), ("RS256",))
    steady = StaticKeySet.from_secret(SECRET, ("HS256",))
    authenticator = build(issuers=[issuer(RSA, changing, "RS256"), issuer(DEV, steady, "HS256")])
    texts = good(), token(claims(DEV), SECRET, "HS256")
    for text in texts:
        run(authenticator.authenticate(text))

    changing.generation += 1

    assert [authenticator.cached_principal(text.encode()) is None for text in texts] == [True, False]


def test_recall_bounded() -> None:
    """The cache keeps at most its number of tokens, the latest ones; none with a size of zero."""
    texts = [token(claims(DEV, sub=f"user-{index}"), SECRET, "HS256") for index in range(5)]
    for entries in (3, 0):
        authenticator = build(cache_entries=entries)
        for text in texts:
            run(authenticator.authenticate(text))
        assert [authenticator.cached_principal(text.encode()) is not None for text in texts] == [
            index >= 5 - entries for index in range(5)
        ]


@pytest.mark.parametrize("text", ["", "\ud800", "tök.en.x", "x" * 10_000_000, "\0"])
def test_recall_of_arbitrary_text(text: str) -> None:
    """Recalling never raises."""
    assert build().cached_principal(text.encode("utf-8", "surrogatepass")) is None


def test_readiness() -> None:
    """Not ready only where nothing works; with keys from the file everything does."""
    assert build().is_ready()
    assert build().problems() == ()
    assert build(issuers=[]).is_ready()
    assert not build(issuers=[], api_keys=ApiKeys()).is_ready()


@pytest.mark.parametrize(
    ("names", "plans"), [(["a", "a"], {"default": DEFAULT}), (["key"], {"default": DEFAULT}), (["a"], {"pro": PRO})]
)
def test_authenticator_misconfigured(names: list[str], plans: dict[str, Plan]) -> None:
    """Issuers that could not be told apart, and users without a plan, are refused at once."""
    keys = StaticKeySet.from_secret(SECRET, ("HS256",))
    with pytest.raises(ValueError, match=r"issuer|plan"):
        build(issuers=[issuer(name, keys, "HS256") for name in names], plans=plans)


@given(st.text() | st.binary(max_size=60).map(lambda data: f"{segment(data)}.{segment(data[::-1])}.{segment(data)}"))
def test_authenticate_arbitrary_text(text: str) -> None:
    """No text is anything but an authentication error."""
    with pytest.raises(AuthenticationError):
        run(build().authenticate(text))


@given(st.randoms(use_true_random=False), st.integers(1, 3))
def test_authenticate_mutated_token(chance: random.Random, edits: int) -> None:
    """A good token with some characters changed is an invalid token."""
    text = token(claims(ES), keyring().p256, "ES256")
    mutated = list(text)
    for _ in range(edits):
        mutated[chance.randrange(len(mutated))] = chance.choice("ABCxyz019-_.=+/ \n\0é")
    if mutated != list(text):
        with pytest.raises(InvalidTokenError):
            run(build().authenticate("".join(mutated)))


HEADER_VALUES = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=2)
)


@given(
    st.dictionaries(st.sampled_from(["alg", "kid", "typ", "cty", "crit", "b64", "zip", "jwk", "x"]), HEADER_VALUES),
    st.dictionaries(st.sampled_from(["iss", "aud", "sub", "exp", "nbf", "plan"]), HEADER_VALUES),
)
def test_authenticate_arbitrary_json(header: dict[str, object], members: dict[str, object]) -> None:
    """A signed token of arbitrary header parameters and claims is a principal or an authentication error."""
    text = token(claims(DEV, **members), SECRET, "HS256", **header)
    try:
        principal = run(build().authenticate(text))
    except AuthenticationError:
        return
    assert principal.issuer == DEV
    assert principal.user
