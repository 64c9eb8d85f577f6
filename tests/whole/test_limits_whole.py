"""What a plan allows, seen by its users: how many, how many at a time, and what they are told about it."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import CONFIG, token
from tests.peers import LAST, STREAM_HEAD, Message, Peer, Upstream, chunk, event, request

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Running

BODY = {"model": "gpt-x", "stream": True}
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
PLANS = """
plans:
  default: {requests: [5/1h], concurrent_streams: 100}
  one: {requests: [1/1d]}
  two: {requests: [100/10s, 3/1d]}
  pair: {concurrent_streams: 2, requests: [1000/1s]}
  free: {}
"""
MESSAGE_PLANS = """
plans:
  default: {requests: [100/1s, 2/100s]}
  pair: {concurrent_streams: 2}
"""
# The other on the same vendor.
TWO_DIALECTS = CONFIG.replace(
    "default_upstream:", "  tongyi: {{url: {url}, dialect: dashscope, api_key: {key}}}\ndefault_upstream:"
)


@pytest.fixture
async def limited(start: Callable[..., Any]) -> Running:
    """A proxy with narrow plans."""
    return await start(PLANS)  # type: ignore[no-any-return]  # the factory's options are open


async def ask(client: Peer, upstream: Upstream, credential: str) -> Message:
    """One request to its end; the vendor answers where it gets there."""
    client.write(request(body=BODY, token=credential))
    accepting = asyncio.create_task(upstream.accept())
    reading = asyncio.create_task(client.read_message())
    await asyncio.wait((accepting, reading), return_when=asyncio.FIRST_COMPLETED)
    if accepting.done():
        vendor = accepting.result()
        await vendor.read_message()
        vendor.write(OK)
        answer = await reading
        await vendor.gone()
        return answer
    accepting.cancel()
    return await reading


def refusal(answer: Message) -> tuple[int, str | None]:
    return answer.status, answer.get("x-forward-sse-code")


async def begin(proxy: Running, upstream: Upstream, credential: str) -> tuple[Peer, Peer]:
    """A stream that runs."""
    client = await proxy.client()
    client.write(request(body=BODY, token=credential))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("one")))
    await client.read_until(event("one"))
    return client, vendor


async def test_limits_burst_admits_exactly_the_quota(limited: Running, upstream: Upstream) -> None:
    """Of many requests at the same time exactly as many pass as the plan allows, and only they reach the vendor."""
    clients = [await limited.client() for _ in range(20)]
    for client in clients:
        client.write(request(body=BODY, token=token()))
    for _ in range(5):
        vendor, _ = await upstream.take()
        vendor.write(OK)

    answers = [await client.read_message() for client in clients]

    statuses = sorted(answer.status for answer in answers)
    assert statuses == [200] * 5 + [429] * 15
    assert len(upstream.peers) <= 5
    codes = {answer.get("x-forward-sse-code") for answer in answers if answer.status == 429}
    assert codes == {"rate_limit_exceeded"}


async def test_limits_retry_after_is_true(start: Callable[..., Any], upstream: Upstream) -> None:
    """Who comes back when told is let in; who comes before is not."""
    proxy = await start("plans: {default: {requests: [1/2s]}}\n")
    client = await proxy.client()
    assert (await ask(client, upstream, token())).status == 200
    refused = await ask(client, upstream, token())
    assert refusal(refused) == (429, "rate_limit_exceeded")
    wait_s = int(refused.get("retry-after") or "")
    assert wait_s in {1, 2}

    early = await ask(client, upstream, token())
    await asyncio.sleep(wait_s)  # the promise is about time
    late = await ask(client, upstream, token())

    assert (early.status, late.status) == (429, 200)


async def test_limits_longest_rate_decides(limited: Running, upstream: Upstream) -> None:
    """All rates of a plan hold, and Retry-After is the time until all of them have room."""
    client = await limited.client()
    credential = token(plan="two")
    for _ in range(3):
        assert (await ask(client, upstream, credential)).status == 200
    answer = await ask(client, upstream, credential)

    assert refusal(answer) == (429, "rate_limit_exceeded")
    # Three a day: the next fits after a third of it.
    assert 28_700 < int(answer.get("retry-after") or "") <= 28_800


async def test_limits_fields(limited: Running, upstream: Upstream) -> None:
    """The fields count down with every request, in the IETF's words and in those that the vendors' clients know."""
    client = await limited.client()
    for remaining in (4, 3):
        answer = await ask(client, upstream, token())
        assert answer.get("x-ratelimit-limit-requests") == "5"
        assert answer.get("x-ratelimit-remaining-requests") == str(remaining)
        assert re.fullmatch(r"(\d+h)?(\d+m)?\d+(\.\d+)?s|\d+ms", answer.get("x-ratelimit-reset-requests") or "")
        policy = re.fullmatch(r'"([^"]+)";q=5;w=3600', answer.get("ratelimit-policy") or "")
        assert policy is not None
        assert re.fullmatch(rf'"{policy[1]}";r={remaining};t=\d+', answer.get("ratelimit") or "")


async def test_limits_fields_of_several_rates(limited: Running, upstream: Upstream) -> None:
    """Every rate has its member; the vendors' words tell of the tightest."""
    client = await limited.client()
    answer = await ask(client, upstream, token(plan="two"))

    assert len((answer.get("ratelimit-policy") or "").split(", ")) == 2
    assert len((answer.get("ratelimit") or "").split(", ")) == 2
    assert answer.get("x-ratelimit-limit-requests") == "3"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", b"not json", 400),
        ("/nobody/v1/models", b"{}", 404),
        ("/main/v1/files", b"{}", 403),
        ("/forward-sse?upstream=nobody", b"{}", 404),
        ("/forward-sse?upstream=main&upstream=main", b"{}", 400),
        ("/forward-sse", b'{"targetUrl":"http://127.0.0.1/"}', 403),
    ],
)
async def test_limits_refusals_have_fields_and_cost_nothing(
    limited: Running, upstream: Upstream, path: str, body: bytes, status: int
) -> None:
    """A request that we refuse ourselves says how its user stands, and is not charged."""
    client = await limited.client()
    for _ in range(7):
        client.write(request(path, body, token=token()))
        answer = await client.read_message()
        assert answer.status == status
        assert answer.get("x-ratelimit-remaining-requests") == "5"
        assert answer.get("ratelimit") is not None

    assert (await ask(client, upstream, token())).get("x-ratelimit-remaining-requests") == "4"
    assert limited.leases_held == 0


async def test_limits_over_the_limit_has_fields(limited: Running, upstream: Upstream) -> None:
    """So does the refusal for the limit itself, with nothing left, and a `t` that Retry-After does not undercut."""
    client = await limited.client()
    for _ in range(5):
        assert (await ask(client, upstream, token())).status == 200
    answer = await ask(client, upstream, token())

    assert answer.status == 429
    assert 700 < int(answer.get("retry-after") or "") <= 720
    assert answer.get("x-ratelimit-remaining-requests") == "0"
    member = re.fullmatch(r'"[^"]+";r=0;t=(\d+)', answer.get("ratelimit") or "")
    assert member is not None
    assert int(answer.get("retry-after") or "") >= int(member[1])


# Each dialect's own place for a message.
MESSAGE_IN = {"main": lambda body: body["error"]["message"], "tongyi": lambda body: body["message"]}


@pytest.mark.parametrize("upstream_name", MESSAGE_IN)
async def test_limits_message_names_the_rate_and_the_wait(
    start: Callable[..., Any], upstream: Upstream, upstream_name: str
) -> None:
    """The refusal says which rate is used up, and how long to wait: as long as `Retry-After` says."""
    proxy = await start(MESSAGE_PLANS, config=TWO_DIALECTS)
    client = await proxy.client()
    for _ in range(2):
        assert (await ask(client, upstream, token())).status == 200
    client.write(request(f"/forward-sse?upstream={upstream_name}", BODY, token=token()))
    answer = await client.read_message()

    assert refusal(answer) == (429, "rate_limit_exceeded")
    wait_s = int(answer.get("retry-after") or "")
    assert wait_s in {49, 50}
    assert MESSAGE_IN[upstream_name](answer.json) == f"2 requests per 100 s used up; try again in {wait_s} s."


@pytest.mark.parametrize("upstream_name", MESSAGE_IN)
async def test_limits_message_names_the_streams(
    start: Callable[..., Any], upstream: Upstream, upstream_name: str
) -> None:
    """The refusal says how many streams at a time a user may have, and that one of them has to end."""
    proxy = await start(MESSAGE_PLANS, config=TWO_DIALECTS)
    running = [await begin(proxy, upstream, token(plan="pair")) for _ in range(2)]
    client = await proxy.client()
    client.write(request(f"/forward-sse?upstream={upstream_name}", BODY, token=token(plan="pair")))
    answer = await client.read_message()

    assert refusal(answer) == (429, "too_many_streams")
    said = MESSAGE_IN[upstream_name](answer.json)
    assert said == "All of your 2 streams at a time are in use; try again when one has ended."
    assert answer.get("retry-after") == "1"
    for peer, vendor in running:
        peer.reset()
        await vendor.closed()


async def test_limits_refused_are_not_charged_twice(limited: Running, upstream: Upstream) -> None:
    """Asking again and again does not put the next admission off."""
    client = await limited.client()
    await ask(client, upstream, token(plan="one"))
    waits = [int((await ask(client, upstream, token(plan="one"))).get("retry-after") or "") for _ in range(5)]

    assert waits == sorted(waits, reverse=True)


async def test_limits_stranger_costs_nobody(limited: Running, upstream: Upstream) -> None:
    """A bad token is charged to nobody, not even to the user it names, and has no fields."""
    client = await limited.client()
    bad = token(exp=1)
    for _ in range(10):
        client.write(request(body=BODY, token=bad))
        answer = await client.read_message()
        assert answer.status == 401
        assert answer.get("ratelimit") is None
        assert answer.get("ratelimit-policy") is None
        assert answer.get("x-ratelimit-remaining-requests") is None

    assert (await ask(client, upstream, token())).get("x-ratelimit-remaining-requests") == "4"


async def test_limits_an_upstreams_error_is_charged(limited: Running, upstream: Upstream) -> None:
    """A request that reached the vendor counts, whatever the vendor said."""
    client = await limited.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")
    answer = await client.read_message()

    assert (answer.status, answer.get("x-ratelimit-remaining-requests")) == (500, "4")


async def test_limits_users_do_not_share(start: Callable[..., Any], upstream: Upstream) -> None:
    """Each pair of issuer and user has limits of its own: two issuers may both know an alice."""
    entry = next(line for line in CONFIG.splitlines(keepends=True) if "issuer: tests" in line)
    config = CONFIG.replace(entry, entry + entry.replace("issuer: tests", "issuer: second"))
    proxy = await start("plans: {default: {requests: [1/1d]}}\n", config=config)
    client = await proxy.client()
    everybody = [token(), token("bob"), token("Alice"), token(iss="second"), token("tests")]
    first = [(await ask(client, upstream, credential)).status for credential in everybody]
    second = [(await ask(client, upstream, credential)).status for credential in everybody]

    assert first == [200] * len(everybody)
    assert second == [429] * len(everybody)


async def test_limits_tokens_of_one_user_share(limited: Running, upstream: Upstream) -> None:
    """Another token of the same user brings no new quota."""
    client = await limited.client()
    assert (await ask(client, upstream, token(plan="one", jti="1"))).status == 200
    assert (await ask(client, upstream, token(plan="one", jti="2"))).status == 429


async def test_limits_too_many_streams(limited: Running, upstream: Upstream) -> None:
    """As many streams run as the plan allows; each that ends, however it ends, makes room for one."""
    credential = token(plan="pair")
    whole_client, whole = await begin(limited, upstream, credential)
    left_client, left = await begin(limited, upstream, credential)
    client = await limited.client()

    refused = await ask(client, upstream, credential)
    assert refusal(refused) == (429, "too_many_streams")
    assert int(refused.get("retry-after") or "") >= 1
    assert refused.get("x-ratelimit-limit-requests") == "1000"
    assert len(upstream.peers) == 2

    # One ends by itself.
    whole.write(LAST)
    await whole_client.read_until(LAST)
    await whole.gone()
    third_client, third = await begin(limited, upstream, credential)
    assert refusal(await ask(client, upstream, credential)) == (429, "too_many_streams")

    # One is left by its client.
    left_client.reset()
    await left.closed()
    fourth_client, fourth = await begin(limited, upstream, credential)
    assert refusal(await ask(client, upstream, credential)) == (429, "too_many_streams")

    # One is torn by the vendor.
    third.reset()
    await third_client.read_to_end()
    assert (await ask(client, upstream, credential)).status == 200
    fourth_client.close()
    await fourth.closed()
    await limited.idle()
    assert limited.leases_held == 0


async def test_limits_waiting_for_the_first_byte_counts(limited: Running, upstream: Upstream) -> None:
    """A request that waits for its vendor holds a slot as well as one that streams."""
    credential = token(plan="pair")
    peers = []
    for _ in range(2):
        peer = await limited.client()
        peer.write(request(body=BODY, token=credential))
        peers.append((peer, (await upstream.take())[0]))
    client = await limited.client()

    assert refusal(await ask(client, upstream, credential)) == (429, "too_many_streams")

    for peer, vendor in peers:
        peer.reset()
        await vendor.closed()
    await limited.idle()
    assert limited.leases_held == 0


async def test_limits_too_many_streams_costs_no_rate(limited: Running, upstream: Upstream) -> None:
    """A request that is refused for its slot is not charged to a rate."""
    await begin(limited, upstream, token(plan="pair"))
    await begin(limited, upstream, token(plan="pair"))
    client = await limited.client()
    for _ in range(3):
        answer = await ask(client, upstream, token(plan="pair"))
        assert answer.status == 429
        # The two that run may have been paid back by time; three more would show.
        assert int(answer.get("x-ratelimit-remaining-requests") or "") >= 998

    assert limited.leases_held == 2


async def test_limits_plan_without_limits(limited: Running, upstream: Upstream) -> None:
    """A plan without rates has no fields, for there is nothing to say."""
    client = await limited.client()
    answer = await ask(client, upstream, token(plan="free"))

    assert answer.status == 200
    assert [name for name, _ in answer.fields if "ratelimit" in name.lower()] == []


async def test_limits_refused_before_the_body(limited: Running, upstream: Upstream) -> None:
    """Over the limit, the body is neither waited for nor asked for (RFC 9110 §10.1.1)."""
    client = await limited.client()
    await ask(client, upstream, token(plan="one"))
    client = await limited.client()
    head = request(token=token(plan="one"), fields=(("Content-Length", "1000000"), ("Expect", "100-continue")))
    client.write(head)

    answer = await client.read_message()

    assert refusal(answer) == (429, "rate_limit_exceeded")
