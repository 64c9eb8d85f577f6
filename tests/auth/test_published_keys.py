"""Published key sets in use: caching, rotation, failure; against a scripted key server."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from proxy.auth.api_keys import ApiKeys
from proxy.auth.authenticator import Authenticator
from proxy.auth.issuers import Issuer
from proxy.auth.jwks import JwksSource
from proxy.auth.published_keys import MAX_WAITERS, RefreshPolicy, RemoteKeySet
from proxy.errors import AuthUnavailableError, InvalidTokenError
from proxy.model import Plan, Principal, TlsFiles
from tests.auth.auth_support import NOW, Clock, KeyServer, Timers, claims, jwk, keyring, token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.auth.published_keys import Outcome

NAME = "https://id.example.com/"
ALGORITHMS = ("RS256", "ES256")
DAY_S = 86_400.0


class Bench:
    """A key set before a key server, with hands on its clock and timers."""

    def __init__(self, server: KeyServer, **policy: float) -> None:
        self.server = server
        self.clock = Clock()
        self.timers = Timers()
        self.outcomes: asyncio.Queue[Outcome] = asyncio.Queue()
        self.reason: str | None = None
        self.keys = RemoteKeySet(
            JwksSource(NAME, server.url()),
            ALGORITHMS,
            policy=RefreshPolicy(**policy),  # type: ignore[arg-type]  # one of the fields is an int
            on_refresh=self._refreshed,
            monotonic=self.clock,
            call_later=self.timers,
        )
        issuer = Issuer(issuer=NAME, audiences=("llm",), algorithms=ALGORITHMS, keys=self.keys)
        self.authenticator = Authenticator(
            issuers=[issuer], api_keys=ApiKeys(), plans={"default": Plan("default")}, now=Clock(NOW)
        )

    def _refreshed(self, issuer: str, outcome: Outcome, reason: str | None) -> None:
        assert issuer == NAME
        assert (outcome == "failed") == bool(reason)
        self.reason = reason
        self.outcomes.put_nowait(outcome)

    async def outcome(self) -> Outcome:
        async with asyncio.timeout(5):
            return await self.outcomes.get()

    async def refresh(self) -> Outcome:
        """Let the scheduled fetch come, and wait for it."""
        self.timers.fire()
        return await self.outcome()

    async def authenticate(self, text: str) -> Principal:
        async with asyncio.timeout(5):
            return await self.authenticator.authenticate(text)

    async def refusal(self, text: str) -> type[Exception]:
        try:
            await self.authenticate(text)
        except (InvalidTokenError, AuthUnavailableError) as error:
            return type(error)
        raise AssertionError("authenticated")


@asynccontextmanager
async def opened(server: KeyServer, **policy: float) -> AsyncIterator[Bench]:
    """A bench whose key set was opened; when it ends, no task and no timer is left."""
    tasks = asyncio.all_tasks()
    bench = Bench(server, **policy)
    await bench.authenticator.open()
    try:
        yield bench
    finally:
        await bench.authenticator.close()
    assert bench.timers.pending == 0
    assert {task for task in asyncio.all_tasks() - tasks if task.get_name().startswith("keys of")} == set()


@pytest.fixture
async def server() -> AsyncIterator[KeyServer]:
    async with KeyServer() as server:
        server.keys = [jwk(keyring().rsa, kid="a")]
        yield server


@pytest.fixture
async def bench(server: KeyServer) -> AsyncIterator[Bench]:
    """A bench with the first key set loaded."""
    async with opened(server) as bench:
        assert await bench.outcome() == "changed"
        yield bench


def signed(kid: str | None = "a", *, name: str = "rsa", algorithm: str = "RS256", **members: object) -> str:
    parameters: dict[str, Any] = {} if kid is None else {"kid": kid}
    return token(claims(NAME, **members), getattr(keyring(), name), algorithm, **parameters)


async def test_known_kid(bench: Bench) -> None:
    """A token with a loaded key is verified without asking the server again."""
    assert (await bench.authenticate(signed())).user == "alice"
    assert bench.server.requests == 1
    assert bench.authenticator.problems() == ()
    assert bench.authenticator.is_ready()


async def test_known_kid_while_the_server_hangs(bench: Bench) -> None:
    """A known kid is verified at once while a fetch hangs and an unknown kid waits for it."""
    bench.server.gate.clear()
    bench.server.asked.clear()
    unknown = asyncio.create_task(bench.refusal(signed("b")))
    async with asyncio.timeout(5):
        await bench.server.asked.wait()

    assert (await bench.authenticate(signed())).user == "alice"
    assert not unknown.done()

    bench.server.gate.set()
    assert await unknown is InvalidTokenError


async def test_new_kid(bench: Bench) -> None:
    """A key that was just published works with the first token that names it."""
    bench.server.keys.append(jwk(keyring().other_rsa, kid="b"))
    assert (await bench.authenticate(signed("b", name="other_rsa"))).user == "alice"
    assert bench.server.requests == 2


async def test_unknown_kids_by_the_thousand(bench: Bench) -> None:
    """A thousand tokens with unknown kids at once cost one fetch, and within the cooldown no other."""
    refusals = await asyncio.gather(
        *(bench.refusal(signed(f"x{index}", name="p256", algorithm="ES256")) for index in range(1000))
    )
    assert set(refusals) == {InvalidTokenError}
    assert bench.server.requests == 2

    bench.clock.now += 29.9
    assert await bench.refusal(signed("y")) is InvalidTokenError
    assert bench.server.requests == 2

    bench.clock.now += 0.2
    assert await bench.refusal(signed("y")) is InvalidTokenError
    assert bench.server.requests == 3


@pytest.mark.parametrize("kid", ["../../dev/null", "' OR 1=1 --", "\0", "A", "a ", "", "🔑", "x" * 4000])
async def test_kid_is_only_compared(kid: str, bench: Bench) -> None:
    """A kid names a loaded key exactly or none."""
    assert await bench.refusal(signed(kid)) is InvalidTokenError


async def test_known_kid_for_another_algorithm(bench: Bench) -> None:
    """A known kid with an algorithm that its key is not bound to is a bad token, and no reason to fetch."""
    assert await bench.refusal(signed("a", name="p256", algorithm="ES256")) is InvalidTokenError
    assert bench.server.requests == 1


@pytest.mark.parametrize(("others", "is_good"), [(0, True), (3, True), (4, False)])
async def test_token_without_kid(others: int, is_good: bool, server: KeyServer) -> None:
    """A token without kid is tried with the keys of its algorithm, if they are at most four."""
    server.keys = [jwk(keyring().other_rsa, kid=f"b{index}") for index in range(others)]
    server.keys += [jwk(keyring().rsa, kid="a"), jwk(keyring().p256, kid="c")]
    async with opened(server) as bench:
        await bench.outcome()
        if is_good:
            assert (await bench.authenticate(signed(None))).user == "alice"
        else:
            assert await bench.refusal(signed(None)) is InvalidTokenError
        assert server.requests == 1


async def test_kid_of_several_keys(server: KeyServer) -> None:
    """A kid that is not unique is tried with each key that has it."""
    server.keys = [jwk(keyring().other_rsa, kid="a"), jwk(keyring().p256, kid="a"), jwk(keyring().rsa, kid="a")]
    async with opened(server) as bench:
        await bench.outcome()
        assert (await bench.authenticate(signed())).user == "alice"
        assert (await bench.authenticate(signed(name="p256", algorithm="ES256"))).user == "alice"
        assert await bench.refusal(signed(name="p384", algorithm="ES256")) is InvalidTokenError
        assert server.requests == 1


async def test_key_removed(bench: Bench) -> None:
    """A key that is no longer published stops working with the next refresh, for remembered tokens too."""
    text = signed()
    await bench.authenticate(text)
    assert bench.authenticator.cached_principal(text.encode()) is not None
    bench.server.keys[:] = [jwk(keyring().other_rsa, kid="b")]

    assert await bench.refresh() == "changed"

    assert bench.authenticator.cached_principal(text.encode()) is None
    assert await bench.refusal(text) is InvalidTokenError


async def test_key_replaced_under_its_kid(bench: Bench) -> None:
    """Another key under the same kid counts as a change."""
    text = signed()
    await bench.authenticate(text)
    bench.server.keys[:] = [jwk(keyring().other_rsa, kid="a")]
    assert await bench.refresh() == "changed"
    assert bench.authenticator.cached_principal(text.encode()) is None
    assert await bench.refusal(text) is InvalidTokenError


async def test_key_set_unchanged(bench: Bench) -> None:
    """The same keys, in whatever order and with other members, leave remembered tokens alone."""
    text = signed()
    await bench.authenticate(text)
    bench.server.keys[:] = [{"kty": "future"}, jwk(keyring().rsa, kid="a", use="sig", x5t="x")]
    assert await bench.refresh() == "unchanged"
    assert bench.authenticator.cached_principal(text.encode()) is not None
    assert bench.keys.skipped == ("keys[0]: a key type or curve that is not used here",)


CERTIFICATES = {"k1": "-----BEGIN CERTIFICATE-----\nMIIC\n", "k2": "-----BEGIN CERTIFICATE-----\nMIID\n"}
BAD_ANSWERS = {
    "503": lambda: web.Response(status=503),
    "html": lambda: web.Response(text="<html>"),
    "no keys": lambda: web.json_response({"keys": []}),
    "no usable key": lambda: web.json_response({"keys": [{"kty": "oct", "k": "AAAA", "kid": "a"}]}),
    "nothing but unusable keys": lambda: web.json_response({"keys": [{"kty": "EC", "use": "enc"}] * 3 + [{}] * 3}),
    "no key set": lambda: web.json_response([]),
    "map of certificates": lambda: web.json_response(CERTIFICATES),
    "discovery document": lambda: web.json_response({"issuer": NAME, "jwks_uri": "https://id.example.com/jwks"}),
    "single key": lambda: web.json_response({"kty": "RSA"}),
    "redirect": lambda: web.Response(status=302, headers={"Location": "https://u:p@id.example.com/other?token=canary"}),
    "huge": lambda: web.Response(body=b" " * (1 << 21)),
}


REASONS = {
    "503": "key set: status 503",
    "html": "key set: a page of HTML or XML",
    "no keys": "key set: it is empty",
    "no usable key": "key set: no usable key: keys[0]: a private or symmetric key is published",
    "nothing but unusable keys": "key set: no usable key: keys[0]: not for signatures; keys[1]: not for signatures; "
    "keys[2]: not for signatures; keys[3]: a key type or curve that is not used here; and 2 more",
    "no key set": "key set: not a JWK Set",
    "map of certificates": "key set: a map of x509 certificates, not a JWK Set "
    "(the issuer publishes one at another URL)",
    "discovery document": "key set: a discovery document, not a JWK Set (use its jwks_uri, or `discovery: true`)",
    "single key": "key set: a single JWK, not a JWK Set",
    "redirect": "key set: a redirect (status 302), which is not followed",
    "huge": "key set: larger than 1048576 bytes",
}
DETAILS = {"redirect": ' (to "https://id.example.com/other")'}


@pytest.mark.parametrize("name", BAD_ANSWERS)
async def test_refresh_failed_for_a_reason(name: str, server: KeyServer) -> None:
    """What is wrong with an answer is told to who asks for readiness, and with more of it to the log."""
    server.answer = BAD_ANSWERS[name]
    async with opened(server) as bench:
        assert await bench.outcome() == "failed"
        assert bench.authenticator.problems() == (f"{NAME}: {REASONS[name]}",)
        assert bench.reason == REASONS[name] + DETAILS.get(name, "")


@pytest.mark.parametrize("name", BAD_ANSWERS)
async def test_refresh_failed(name: str, bench: Bench) -> None:
    """A failed refresh keeps the keys and what they verified, says why, and the next success clears it."""
    text = signed()
    await bench.authenticate(text)
    bench.server.answer = BAD_ANSWERS[name]

    assert await bench.refresh() == "failed"

    assert bench.keys.failure
    assert bench.authenticator.cached_principal(text.encode()) is not None
    assert (await bench.authenticate(signed(sub="bob"))).user == "bob"
    bench.server.answer = bench.server.key_set
    assert await bench.refresh() == "unchanged"
    assert bench.keys.failure is None


async def test_refresh_that_breaks_a_library(bench: Bench) -> None:
    """An error that nobody foresaw is a failed refresh like others: the keys stay, the next fetch is scheduled."""
    session = bench.keys._session
    assert session is not None
    await session.close()
    assert await bench.refresh() == "failed"
    assert bench.keys.failure == "RuntimeError"
    assert bench.timers.pending == 1
    assert (await bench.authenticate(signed())).user == "alice"


async def test_refresh_that_hangs(server: KeyServer) -> None:
    """A fetch is given up after its time, and the next one is scheduled."""
    async with opened(server, timeout_s=0.25) as bench:
        server.gate.clear()
        assert await bench.outcome() == "failed"
        assert bench.keys.failure == "no answer within 0.25 s"
        server.gate.set()
        assert await bench.refresh() == "changed"


async def test_refresh_schedule(bench: Bench) -> None:
    """The next fetch comes within the time to live, after failures in growing steps of at most a minute."""
    bench.server.answer = BAD_ANSWERS["503"]
    for _ in range(9):
        await bench.refresh()
    bench.server.answer = bench.server.key_set
    await bench.refresh()
    bounds = [300, 1, 2, 4, 8, 16, 32, 60, 60, 60, 300]
    for delay, bound in zip(bench.timers.delays, bounds, strict=True):
        assert 0.8 * bound <= delay <= bound


async def test_keys_too_old(bench: Bench) -> None:
    """After a day of failures the keys are given up: 503, remembered tokens too, until the server is back."""
    text = signed()
    await bench.authenticate(text)
    bench.server.answer = BAD_ANSWERS["503"]
    bench.clock.now += DAY_S - 1
    await bench.refresh()
    assert bench.authenticator.cached_principal(text.encode()) is not None

    bench.clock.now += 1
    await bench.refresh()

    assert bench.authenticator.cached_principal(text.encode()) is None
    assert bench.authenticator.problems() == (f"{NAME}: key set: status 503",)
    assert not bench.authenticator.is_ready()
    assert await bench.refusal(text) is AuthUnavailableError
    bench.server.answer = bench.server.key_set
    assert await bench.refresh() == "changed"
    assert (await bench.authenticate(text)).user == "alice"


async def test_keys_never_loaded(server: KeyServer) -> None:
    """Without any key set a good token is 503, at one fetch a second, and works once the server is there."""
    server.answer = BAD_ANSWERS["503"]
    async with opened(server) as bench:
        assert await bench.outcome() == "failed"
        assert bench.authenticator.problems() == (f"{NAME}: key set: status 503",)
        assert not bench.authenticator.is_ready()
        for _ in range(10):
            assert await bench.refusal(signed()) is AuthUnavailableError
        assert server.requests == 1

        bench.clock.now += 1
        assert set(await asyncio.gather(*(bench.refusal(signed()) for _ in range(10)))) == {AuthUnavailableError}
        assert server.requests == 2

        bench.clock.now += 1
        server.answer = server.key_set
        assert (await bench.authenticate(signed())).user == "alice"
        assert server.requests == 3
        assert bench.authenticator.is_ready()


async def test_request_before_the_first_fetch_ended(server: KeyServer) -> None:
    """Opening does not wait for the network; a request that comes meanwhile waits for the same fetch."""
    server.gate.clear()
    async with opened(server) as bench:
        assert bench.authenticator.problems() == (f"{NAME}: no keys yet",)
        waiting = asyncio.create_task(bench.authenticate(signed()))
        async with asyncio.timeout(5):
            await server.asked.wait()
        assert not waiting.done()
        server.gate.set()
        assert (await waiting).user == "alice"
        assert server.requests == 1


async def test_foreign_issuer_asks_nobody(bench: Bench) -> None:
    """A token of an issuer that is not configured causes no fetch, nor does one with an algorithm of no entry."""
    foreign = token(claims("https://evil.example.com/"), keyring().rsa, "RS256", kid="x", jku=bench.server.url("/evil"))
    assert await bench.refusal(foreign) is InvalidTokenError
    assert await bench.refusal(signed("x", name="p384", algorithm="ES384")) is InvalidTokenError
    assert bench.server.requests == 1


async def test_waiter_cancelled(bench: Bench) -> None:
    """A request that leaves while it waits for a fetch leaves the fetch to the others."""
    bench.server.gate.clear()
    bench.server.asked.clear()
    bench.server.keys.append(jwk(keyring().other_rsa, kid="b"))
    text = signed("b", name="other_rsa")
    leaving, staying = (asyncio.create_task(bench.authenticate(text)) for _ in range(2))
    async with asyncio.timeout(5):
        await bench.server.asked.wait()

    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    bench.server.gate.set()

    assert (await staying).user == "alice"
    assert bench.server.requests == 2


async def test_waiters_bounded(bench: Bench) -> None:
    """Beyond the bound, requests with an unknown kid are refused without waiting."""
    bench.server.gate.clear()
    text = signed("x", name="p256", algorithm="ES256")
    waiting = [asyncio.create_task(bench.refusal(text)) for _ in range(MAX_WAITERS)]
    beyond = asyncio.create_task(bench.refusal(text))

    assert await beyond is InvalidTokenError
    assert not any(task.done() for task in waiting)

    bench.server.gate.set()
    assert set(await asyncio.gather(*waiting)) == {InvalidTokenError}


async def test_close_while_fetching(server: KeyServer) -> None:
    """Closing ends a hanging fetch and answers who waits for it."""
    server.gate.clear()
    async with opened(server) as bench:
        async with asyncio.timeout(5):
            await server.asked.wait()
        waiting = asyncio.create_task(bench.refusal(signed()))
        await asyncio.sleep(0)  # let it begin to wait
    assert await waiting is AuthUnavailableError
    assert bench.outcomes.empty()


async def test_handed_over(bench: Bench) -> None:
    """A key set that a second authenticator opened outlives the first, and closes with the last."""
    settings_key = bench.keys.settings_key
    keys = bench.authenticator.key_sources[settings_key]
    await keys.open()
    await bench.authenticator.close()
    assert await bench.refresh() == "unchanged"
    await keys.close()
    assert bench.timers.pending == 0
    await keys.open()  # and can be opened again
    assert await bench.outcome() == "unchanged"


def test_settings_key() -> None:
    """Sources of equal settings are known for it, others are told apart."""
    source = JwksSource(NAME, "https://id.example.com/jwks")
    same = [RemoteKeySet(source, algorithms).settings_key for algorithms in (("RS256", "ES256"), ("ES256", "RS256"))]
    assert same[0] == same[1]
    others = [
        RemoteKeySet(source, ("RS256",)),
        RemoteKeySet(JwksSource(NAME), ALGORITHMS),
        RemoteKeySet(JwksSource(NAME, "https://id.example.com/jwks", tls=TlsFiles("/ca.pem")), ALGORITHMS),
        RemoteKeySet(JwksSource(NAME, "https://id.example.com/jwks", allow_http=True), ALGORITHMS),
        RemoteKeySet(source, ALGORITHMS, policy=RefreshPolicy(ttl_s=1)),
    ]
    assert len({same[0], *(keys.settings_key for keys in others)}) == 6


@pytest.mark.parametrize("algorithms", [(), ("HS256",), ("HS256", "RS256"), ("none",)])
def test_algorithms_refused(algorithms: tuple[str, ...]) -> None:
    """A published key is never a secret."""
    with pytest.raises(ValueError, match=r"HS|algorithms"):
        RemoteKeySet(JwksSource(NAME), algorithms)


async def test_scheduled_by_the_loop(server: KeyServer) -> None:
    """Without hands on the timers, the event loop's own fetch the set again and again."""
    outcomes: asyncio.Queue[Outcome] = asyncio.Queue()
    keys = RemoteKeySet(
        JwksSource(NAME, server.url()),
        ALGORITHMS,
        policy=RefreshPolicy(ttl_s=0.01),
        on_refresh=lambda _, outcome, __: outcomes.put_nowait(outcome),
    )
    await keys.open()
    async with asyncio.timeout(5):
        assert [await outcomes.get() for _ in range(3)] == ["changed", "unchanged", "unchanged"]
    await keys.close()
