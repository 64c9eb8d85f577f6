"""Routes from outside: whom they are for, whom a user may ask, and keys within them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import token
from tests.failover import vendors as acts
from tests.failover.test_matrix import BODY_OF_B, ask, start_with
from tests.failover.vendors import BODY, config, line_of, words
from tests.peers import only, request

if TYPE_CHECKING:
    from tests.conftest import Start
    from tests.failover.vendors import Vendor

RETRY = '{models: ["gpt-*"], upstreams: [a, b], retry: {attempts: 2}}'


def urls(vendors: list[Vendor]) -> dict[str, str]:
    return {vendor.name: vendor.url for vendor in vendors}


async def test_route_key_moves_do_not_count_as_attempts(start: Start, vendors: list[Vendor]) -> None:
    """Keys of one upstream are tried within one attempt of the route, and each request counts for the client."""
    vendors[0].script = [acts.status(429, "Retry-After: 60")]
    text = config(urls(vendors), RETRY).replace("api_key: key-of-a", "api_keys: [one-of-a, two-of-a, three-of-a]")
    proxy = await start(config=text)

    answer = await ask(proxy)

    assert (answer.status, answer.body, answer.get("x-forward-sse-attempts")) == (200, words("b"), "4")
    assert vendors[0].keys == ["one-of-a", "two-of-a", "three-of-a"]
    # Where every key of an upstream rests, another upstream is asked first.
    assert (await ask(proxy)).get("x-forward-sse-attempts") == "1"
    assert len(vendors[0].asked) == 3


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_route_without_retry_leaves_a_refused_key(start: Start, vendors: list[Vendor], status: int) -> None:
    """A key of ours that is refused moves every route on: nothing has run, and no user can mend it."""
    vendors[0].script = [acts.status(status)]
    proxy = await start_with(start, vendors, "")

    answer = await ask(proxy)

    assert (answer.status, answer.body) == (200, words("b"))
    assert vendors[1].asked[0].body == BODY_OF_B


async def test_route_only_our_keys_at_fault(start: Start, vendors: list[Vendor]) -> None:
    """When every vendor refuses our keys the user gets our 502, never a 401."""
    for vendor in vendors:
        vendor.script = [acts.status(401)]
    proxy = await start_with(start, vendors, ", retry: {}")

    answer = await ask(proxy)

    assert (answer.status, answer.get("x-forward-sse-code")) == (502, "upstream_credentials_exhausted")
    assert [len(vendor.asked) for vendor in vendors] == [1, 1, 1]
    line = only(await proxy.settled(), "exchange.settled")
    assert [attempt["status"] for attempt in line["attempts"]] == [401, 401, 401]
    assert (await line_of(proxy, "upstream.credentials_refused"))["upstream"] == "c"


@pytest.mark.parametrize(
    ("allowed", "status", "served"),
    [("[b, c]", 200, "b"), ("[c]", 200, "c"), ("[]", 403, None)],
)
async def test_route_within_the_plan(
    start: Start, vendors: list[Vendor], allowed: str, status: int, served: str | None
) -> None:
    """Upstreams that a user's plan does not include are not asked; the refusal is told where none is left."""
    text = config(urls(vendors), '{models: ["gpt-*"], upstreams: [a, b, c], retry: {}}', plan=f", upstreams: {allowed}")
    proxy = await start(config=text)

    answer = await ask(proxy)

    assert (answer.status, answer.get("x-forward-sse-upstream")) == (status, served)
    assert not vendors[0].asked
    if served is None:
        assert answer.get("x-forward-sse-code") == "upstream_not_allowed"


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/a/v1/chat/completions", ()),
        ("/forward-sse?upstream=a", ()),
        ("/forward-sse", (("X-Upstream", "a"),)),
    ],
)
async def test_named_upstream_has_no_other(
    start: Start, vendors: list[Vendor], path: str, fields: tuple[tuple[str, str], ...]
) -> None:
    """Who names an upstream is answered by that one, whatever it says."""
    vendors[0].script = [acts.status(503)]
    proxy = await start(config=config(urls(vendors), RETRY))
    client = await proxy.client()
    client.write(request(path, body=BODY, token=token(), fields=fields))
    answer = await client.read_message()

    assert (answer.status, answer.get("x-forward-sse-upstream")) == (503, "a")
    assert answer.get("x-forward-sse-attempts") == "1"
    assert not vendors[1].asked


async def test_envelope_has_no_other(start: Start, vendors: list[Vendor]) -> None:
    """An envelope names its target: no other is asked, and its answer names the upstream."""
    vendors[0].script = [acts.status(503)]
    more = f'envelope: {{targets: [{{url: "{vendors[0].url}/*", upstream: a}}], allow_private: ["127.0.0.0/8"]}}'
    proxy = await start(config=config(urls(vendors), RETRY, more=more))
    body = {"targetUrl": f"{vendors[0].url}/v1/chat/completions", "body": '{"model": "gpt-x"}'}
    client = await proxy.client()
    client.write(request(body=body, token=token()))
    answer = await client.read_message()

    assert (answer.status, answer.get("x-forward-sse-upstream")) == (503, "a")
    assert not vendors[1].asked


async def test_route_before_the_models_of_upstreams(start: Start, vendors: list[Vendor]) -> None:
    """The first route that has the model decides, before any upstream's `models`; a model of no route goes by these."""
    text = config(urls(vendors), RETRY).replace("key-of-c", 'key-of-c, models: ["*"]')
    proxy = await start(config=text)

    routed, other = await ask(proxy), await ask(proxy, BODY.replace(b"gpt-x", b"qwen"))

    assert (routed.get("x-forward-sse-upstream"), other.get("x-forward-sse-upstream")) == ("a", "c")


async def test_route_body_with_two_models(start: Start, vendors: list[Vendor]) -> None:
    """A body that two readers would route differently is refused, and given back."""
    proxy = await start_with(start, vendors, ", retry: {}")

    answer = await ask(proxy, b'{"model": "gpt-x", "mod\\u0065l": "gpt-y"}')

    assert (answer.status, answer.get("x-forward-sse-code")) == (400, "invalid_request")
    assert answer.get("x-ratelimit-remaining-requests") == "100"


async def test_answers_of_ours_name_no_vendor(start: Start, vendors: list[Vendor]) -> None:
    """What the proxy itself answers has no vendor's name."""
    proxy = await start(config=config(urls(vendors), RETRY))
    client = await proxy.client()
    client.write(request("/v1/chat/completions", body=BODY))
    answer = await client.read_message()

    assert answer.status == 401
    assert answer.get("x-forward-sse-upstream") is None
    assert answer.get("x-forward-sse-attempts") is None
