"""The machine's clock is set, forward and back: what is measured goes on, and tokens go by the new time at once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import jwt
import pytest

from proxy.auth.api_keys import ApiKeys
from proxy.auth.authenticator import Authenticator
from proxy.auth.issuers import Issuer
from proxy.auth.key_sets import StaticKeySet
from proxy.errors import AuthenticationError
from proxy.model import Plan
from tests.conftest import SECRET, token
from tests.peers import LAST, STREAM_HEAD, chunk, connect, event, request

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.peers import Upstream

DAY_S = 86_400
BODY = {"model": "gpt-x", "stream": True}
PLANS = "plans: {default: {requests: [2/1h], concurrent_streams: 1}}\n"


class Wall:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


def issued(wall: Wall, *, ttl_s: int = 600) -> str:
    now_s = int(wall())
    claims = {"iss": "tests", "aud": "llm", "sub": "alice", "iat": now_s, "exp": now_s + ttl_s}
    return jwt.encode(claims, SECRET, algorithm="HS256")


@pytest.mark.parametrize("is_known", [True, False], ids=["seen before", "new"])
async def test_faults_clock_set_tokens(*, is_known: bool) -> None:
    """A token is judged by the clock of the moment, also one that was verified and remembered before it was set."""
    wall = Wall()
    keys = StaticKeySet.from_secret(SECRET.encode(), ("HS256",))
    issuer = Issuer(issuer="tests", audiences=("llm",), algorithms=("HS256",), keys=keys)
    authenticator = Authenticator(issuers=[issuer], api_keys=ApiKeys([]), plans={"default": Plan("default")}, now=wall)
    credential = issued(wall)
    if is_known:
        await authenticator.authenticate(credential)

    wall.now_s += DAY_S
    assert authenticator.cached_principal(credential.encode()) is None
    with pytest.raises(AuthenticationError) as refused:
        await authenticator.authenticate(credential)
    assert refused.value.code == "expired_token"
    later = issued(wall)
    assert (await authenticator.authenticate(later)).user == "alice"

    # Back: good again, as it was before. What was issued in the time that is now to come is not, unless it is known.
    wall.now_s -= DAY_S
    assert (await authenticator.authenticate(credential)).user == "alice"
    with pytest.raises(AuthenticationError) as too_soon:
        await authenticator.authenticate(_of_tomorrow(wall))
    assert too_soon.value.code == "invalid_token"


def _of_tomorrow(wall: Wall) -> str:
    tomorrow = Wall()
    tomorrow.now_s = wall() + DAY_S
    return issued(tomorrow, ttl_s=700)


@pytest.mark.parametrize("by_s", [DAY_S, -DAY_S], ids=["forward", "back"])
async def test_faults_clock_set_limits_and_streams(
    start: Callable[..., Any], upstream: Upstream, monkeypatch: pytest.MonkeyPatch, by_s: float
) -> None:
    """Rates, streams and clocks of a running service are measured by a clock that nobody sets."""
    proxy = await start(PLANS)
    credential = token(exp=int(time.time()) + 3 * DAY_S)
    client = await proxy.client()
    client.write(request(body=BODY, token=credential))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("one")))
    await client.read_until(event("one"))
    real = time.time

    monkeypatch.setattr(time, "time", lambda: real() + by_s)
    vendor.write(chunk(event("two")))
    await client.read_until(event("two"))
    async with await connect(proxy.address) as other:
        other.write(request(body=BODY, token=credential))
        assert (await other.read_message()).get("x-forward-sse-code") == "too_many_streams"
    vendor.write(LAST)
    await client.read_until(LAST)
    client.write(request(body=BODY, token=credential))
    await vendor.read_message()
    vendor.write(STREAM_HEAD + LAST)
    await client.read_until(LAST)
    client.write(request(body=BODY, token=credential))
    refusal = await client.read_message()
    lines = await proxy.settled(4)

    assert refusal.get("x-forward-sse-code") == "rate_limit_exceeded"
    assert 0 < int(refusal.get("retry-after") or 0) <= 3600
    assert [line["ending"] for line in lines].count("complete") == 2
    assert all(0 <= line["duration_ms"] < 60_000 for line in lines)
