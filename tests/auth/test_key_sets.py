"""Keys from the operator's file."""

from __future__ import annotations

from proxy.auth.key_sets import StaticKeySet
from tests.auth.auth_support import SECRET, keyring, pem, run


def test_static_key_set() -> None:
    """The one key serves its algorithms, whatever the kid; it is always loaded and needs no closing."""
    keys = StaticKeySet.from_pem(pem(keyring().p256), ("ES256",))
    run(keys.open())
    for kid in (None, "a", "b"):
        assert len(run(keys.candidates(kid, "ES256"))) == 1
        assert run(keys.candidates(kid, "RS256")) == ()
    assert keys.is_loaded
    run(keys.close())


def test_static_settings_key() -> None:
    """Equal settings are known for it, others are told apart, and the secret is not in the key."""
    key = StaticKeySet.from_secret(SECRET, ("HS256",)).settings_key
    same = StaticKeySet.from_secret(SECRET.encode(), ("HS256",)).settings_key
    longer = StaticKeySet.from_secret(SECRET + "!", ("HS256",)).settings_key
    other = StaticKeySet.from_secret(SECRET, ("HS512",)).settings_key
    assert key == same
    assert len({key, longer, other}) == 3
    assert SECRET not in repr(key)
