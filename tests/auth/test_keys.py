"""Keys and the algorithms they are bound to."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed448, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from proxy.auth.keys import (
    MAX_KEYS,
    SUPPORTED_ALGORITHMS,
    KeyRefusedError,
    check_algorithms,
    decode_json,
    jwks_keys,
    pem_key,
    secret_key,
)
from tests.auth.auth_support import SECRET, jwk, keyring, pem, segment, signature

PUBLIC_ALGORITHMS = SUPPORTED_ALGORITHMS - {"HS256", "HS384", "HS512"}


def bound(document: dict[str, object], *algorithms: str) -> set[str]:
    """The algorithms of the one key of a set, none where it was left out."""
    keys, skipped = jwks_keys({"keys": [document]}, frozenset(algorithms) or PUBLIC_ALGORITHMS)
    assert len(keys) + len(skipped) == 1
    return set(keys[0].algorithms) if keys else set()


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        *[("rsa", f"{family}{bits}") for family in ("RS", "PS") for bits in (256, 384, 512)],
        ("p256", "ES256"),
        ("p384", "ES384"),
        ("p521", "ES512"),
        ("ed", "EdDSA"),
        ("ed", "Ed25519"),
    ],
)
def test_public_key_verifies_its_own(name: str, algorithm: str) -> None:
    """A key from PEM or JWK verifies its own signatures, and none that was changed."""
    private_key = getattr(keyring(), name)
    signed = signature(algorithm, private_key, "a.b")
    (published,), _ = jwks_keys({"keys": [jwk(private_key, alg=algorithm)]}, PUBLIC_ALGORITHMS)
    for key in (pem_key(pem(private_key), [algorithm]), published):
        assert key.verifies(algorithm, b"a.b", signed)
        assert not key.verifies(algorithm, b"a.c", signed)
        assert not key.verifies(algorithm, b"a.b", signed[:-1])
        assert not key.verifies(algorithm, b"a.b", signed + b"\0")
        assert not key.verifies(algorithm, b"a.b", b"")


def test_key_with_an_algorithm_it_is_not_bound_to() -> None:
    """A good signature of a key's, by an algorithm that it is not bound to, verifies nothing (GHSA-jq35-7prp-9v3f)."""
    key = pem_key(pem(keyring().rsa), ["RS512"])
    for algorithm in ("RS256", "PS256", "PS512"):
        assert not key.verifies(algorithm, b"a.b", signature(algorithm, keyring().rsa, "a.b"))
    assert not key.verifies("HS256", b"a.b", signature("HS256", pem(keyring().rsa), "a.b"))
    assert not key.verifies("none", b"a.b", b"")


@pytest.mark.parametrize("algorithms", [[], ["none"], ["RS256", "HS256"], ["rs256"], ["ES256K"], ["Ed448"]])
def test_algorithms_refused(algorithms: list[str]) -> None:
    """Unknown algorithms, none, and HMAC beside public keys are the operator's mistake."""
    with pytest.raises(ValueError, match="algorithms"):
        check_algorithms(algorithms)


@pytest.mark.parametrize(
    ("secret", "algorithms"),
    [
        ("brief", ["HS256"]),
        ("x" * 31, ["HS256"]),
        ("x" * 47, ["HS256", "HS384"]),
        ("x" * 63, ["HS512"]),
        (SECRET, ["RS256"]),
    ],
)
def test_secret_refused(secret: str, algorithms: list[str]) -> None:
    """A secret shorter than the hash, or for other algorithms, is refused without being quoted."""
    with pytest.raises(KeyRefusedError) as caught:
        secret_key(secret, algorithms)
    assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("encoding", "public_format"),
    [
        (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        (Encoding.PEM, PublicFormat.PKCS1),
        (Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        (Encoding.OpenSSH, PublicFormat.OpenSSH),
    ],
)
def test_secret_that_is_a_public_key(encoding: Encoding, public_format: PublicFormat) -> None:
    """A public key is never taken for a secret, in any encoding (CVE-2022-29217, GHSA-xgmm-8j9v-c9wx)."""
    public_key = keyring().rsa.public_key()
    for secret in (public_key.public_bytes(encoding, public_format), json.dumps(jwk(keyring().rsa)).encode()):
        with pytest.raises(KeyRefusedError):
            secret_key(secret, ["HS256"])


@pytest.mark.parametrize(
    ("name", "algorithms"),
    [
        ("rsa", ["RS256", "PS256"]),
        ("rsa", ["ES256"]),
        ("rsa", ["RS256", "ES256"]),
        ("p256", ["ES384"]),
        ("p256", ["ES256", "ES384"]),
        ("ed", ["ES256"]),
        ("k256", ["ES256"]),
    ],
)
def test_pem_key_that_does_not_fit(name: str, algorithms: list[str]) -> None:
    """A public key must be able to do every algorithm of its entry, and those be one family."""
    with pytest.raises(KeyRefusedError):
        pem_key(pem(getattr(keyring(), name)), algorithms)


def test_pem_key_malformed() -> None:
    """A private key, an HMAC secret or nonsense is no public key, and is not quoted."""
    private = keyring().rsa.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for text in (private, SECRET, "", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"):
        with pytest.raises(KeyRefusedError, match=r"^not a public key in PEM$"):
            pem_key(text, ["RS256"])


def test_pem_key_of_another_type() -> None:
    """A public key of a type that no algorithm of ours uses is refused."""
    with pytest.raises(KeyRefusedError):
        pem_key(pem(ed448.Ed448PrivateKey.generate()), ["EdDSA"])


def test_key_shows_nothing_of_itself() -> None:
    """A key's representation holds neither the secret nor its digest."""
    assert SECRET not in repr(secret_key(SECRET, ["HS256"]))
    assert "fingerprint" not in repr(secret_key(SECRET, ["HS256"]))


@pytest.mark.parametrize(
    ("name", "members", "algorithms", "expected"),
    [
        ("rsa", {}, ["RS256"], {"RS256"}),
        ("rsa", {}, ["RS256", "RS512", "ES256"], {"RS256", "RS512"}),
        ("rsa", {"alg": "RS512"}, ["RS256", "RS512"], {"RS512"}),
        ("rsa", {"alg": "PS256"}, ["RS256", "PS256"], {"PS256"}),
        ("rsa", {"use": "sig", "key_ops": ["verify"], "x5t": "x", "future": {}}, ["RS256"], {"RS256"}),
        ("p256", {}, ["ES256", "ES384"], {"ES256"}),
        ("ed", {"alg": "EdDSA"}, ["EdDSA", "Ed25519"], {"EdDSA", "Ed25519"}),
        ("ed", {"alg": "Ed25519"}, ["EdDSA"], {"EdDSA"}),
        # Left out:
        ("rsa", {}, ["RS256", "PS256"], set()),
        ("rsa", {"alg": "RS512"}, ["RS256"], set()),
        ("rsa", {"alg": "RSA-OAEP"}, ["RS256"], set()),
        ("rsa", {"alg": 5}, ["RS256"], set()),
        ("rsa", {"alg": ["RS256"]}, ["RS256"], set()),
        ("rsa", {"use": "enc"}, ["RS256"], set()),
        ("rsa", {"use": ["sig"]}, ["RS256"], set()),
        ("rsa", {"key_ops": ["encrypt"]}, ["RS256"], set()),
        ("rsa", {"key_ops": "verify"}, ["RS256"], set()),
        ("rsa", {"kid": 5}, ["RS256"], set()),
        ("rsa", {"d": "AQAB"}, ["RS256"], set()),
        ("rsa", {"p": "AQAB"}, ["RS256"], set()),
        ("rsa", {"k": "AQAB"}, ["RS256"], set()),
        ("rsa", {"kty": "oct", "k": "AQAB"}, ["RS256"], set()),
        ("rsa", {"kty": "future"}, ["RS256"], set()),
        ("rsa", {"kty": ["RSA"]}, ["RS256"], set()),
        ("rsa", {"kty": "EC"}, ["RS256"], set()),
        ("rsa", {"e": "AQ"}, ["RS256"], set()),
        ("rsa", {"e": "Ag"}, ["RS256"], set()),
        ("rsa", {"e": segment(b"\1" * 9)}, ["RS256"], set()),
        ("rsa", {"e": segment(b"\2\0\0\0\1")}, ["RS256"], set()),
        ("rsa", {"e": 65537}, ["RS256"], set()),
        ("rsa", {"e": None}, ["RS256"], set()),
        ("rsa", {"n": "AQAB"}, ["RS256"], set()),
        ("rsa", {"n": "!"}, ["RS256"], set()),
        ("rsa", {"n": "\ud800"}, ["RS256"], set()),
        ("rsa", {"n": segment(b"\xff" * 1025)}, ["RS256"], set()),
        ("rsa", {"n": "A" * 900_000}, ["RS256"], set()),
        ("p384", {}, ["ES256"], set()),
        ("p384", {"alg": "ES256"}, ["ES256", "ES384"], set()),
        ("k256", {}, ["ES256"], set()),
        ("p256", {"crv": "P-384"}, ["ES256", "ES384"], set()),
        ("p256", {"crv": ["P-256"]}, ["ES256"], set()),
        ("p256", {"x": segment(b"\1" * 32)}, ["ES256"], set()),
        ("p256", {"y": None}, ["ES256"], set()),
        ("ed", {"crv": "X25519"}, ["EdDSA"], set()),
        ("ed", {"x": "AQAB"}, ["EdDSA"], set()),
    ],
)
def test_jwk_binding(name: str, members: dict[str, object], algorithms: list[str], expected: set[str]) -> None:
    """A published key is bound to what its type, its `alg` and its issuer's entry agree on, else left out."""
    assert bound(jwk(getattr(keyring(), name), **members), *algorithms) == expected


@pytest.mark.parametrize(
    "private_key",
    [rsa.generate_private_key(65537, 1024), rsa.generate_private_key(3, 2048), ed448.Ed448PrivateKey.generate()],
    ids=["1024 bits", "exponent 3", "Ed448"],
)
def test_jwk_weak_or_unusual(private_key: Any) -> None:
    """Small RSA keys and Ed448 are left out; an old exponent is no reason to."""
    if isinstance(private_key, ed448.Ed448PrivateKey):
        raw = private_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        assert not bound({"kty": "OKP", "crv": "Ed448", "x": segment(raw)})
    else:
        assert bool(bound(jwk(private_key), "RS256")) is (private_key.key_size == 2048)


def test_jwks_one_bad_key_among_good() -> None:
    """Bad keys are left out with a reason each, and the good ones load."""
    members: list[object] = [
        5,
        None,
        [],
        {},
        {"kty": "oct", "k": "AA"},
        jwk(keyring().rsa, kid="a"),
        jwk(keyring().p256, kid="b"),
    ]

    keys, skipped = jwks_keys({"keys": members}, frozenset({"RS256", "ES256"}))

    assert [key.kid for key in keys] == ["a", "b"]
    assert [reason.partition(":")[0] for reason in skipped] == [f"keys[{index}]" for index in range(5)]


def test_jwks_too_many_keys() -> None:
    """Of a set of any size, a bounded number of keys is looked at."""
    keys, skipped = jwks_keys({"keys": [jwk(keyring().ed)] * (MAX_KEYS + 1)}, frozenset({"EdDSA"}))
    assert (len(keys), len(skipped)) == (MAX_KEYS, 1)


@pytest.mark.parametrize("document", [None, [], "keys", {}, {"keys": {}}, {"keys": None}])
def test_jwks_not_a_key_set(document: object) -> None:
    """A document without a list of keys is no key set."""
    with pytest.raises(KeyRefusedError):
        jwks_keys(document, frozenset({"RS256"}))


@pytest.mark.parametrize("data", [b"", b"<html>", b"\xff", b"[" * 100_000, b"9" * 5000])
def test_document_not_json(data: bytes) -> None:
    """What is not JSON is refused as that, however it fails."""
    with pytest.raises(KeyRefusedError):
        decode_json(data)
