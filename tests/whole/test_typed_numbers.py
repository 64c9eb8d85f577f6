"""Names of typed events that are numbers, as TypeScript's enums are: on every door, and in what is ours to say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import token
from tests.peers import LAST, STREAM_HEAD, Upstream, chunk, request
from tests.whole.typed_scenes import ASKED, BODY, CONFIG, FINISH, line, rest_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Running
    from tests.peers import Peer

NUMBERS = CONFIG.replace(
    "typed_names: {{Text: text}}",
    "typed_names: {{Image: 5, Think: 1, Text: 0, Cancelled: 2, End: 3, Error: 4}}",
).replace("typed_names: {{End: done}}", "typed_names: {{End: 33}}")
TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"one"}}]}\n\n'
THOUGHT = b'data: {"choices":[{"index":0,"delta":{"reasoning_content":"so"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(("path", "end"), [(ASKED, 3), ("/always/v1/chat/completions", 33)], ids=["asked", "always"])
async def test_typed_numbers(start: Callable[..., Any], upstream: Upstream, path: str, end: int) -> None:
    """Each kind has its number, without quotes; an upstream's own lies over the common ones."""
    proxy = await start(config=NUMBERS)
    client = await proxy.client()
    client.write(request(path, BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(THOUGHT + TEXT + FINISH + DONE) + LAST)
    await client.read_head()
    body = await client.read_until(LAST)
    assert body.index(line(t=1, r="so")) < body.index(line(t=0, r="one")) < body.index(line(t=end, r=""))


async def test_typed_numbers_of_an_error(start: Callable[..., Any], upstream: Upstream) -> None:
    """What the proxy says of a stream that broke has its number too."""
    proxy = await start(config=NUMBERS)
    client = await proxy.client()
    client.write(request(ASKED, BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(TEXT))
    await client.read_head()
    await client.read_until(line(t=0, r="one") + b"\r\n")
    vendor.close()
    (last,) = await rest_of(client)
    assert (last["t"], last["code"]) == (4, "upstream_unreachable")


async def take_by_ticket(proxy: Running, upstream: Upstream) -> tuple[Peer, Peer]:
    client = await proxy.client()
    client.write(request("/forward-sse/tickets?events=typed", BODY, token=token()))
    url = (await client.read_message()).json["url"]
    client.write(request(f"/{url.removeprefix('/')}", method="GET", token=token()))
    vendor, _ = await upstream.take()
    return client, vendor


async def test_typed_numbers_by_ticket(start: Callable[..., Any], upstream: Upstream) -> None:
    """A ticket's stream has the numbers."""
    client, vendor = await take_by_ticket(await start(config=NUMBERS), upstream)
    vendor.write(STREAM_HEAD + chunk(TEXT + FINISH + DONE) + LAST)
    body = await client.read_until(LAST)
    assert line(t=0, r="one") in body
    assert line(t=3, r="") in body


async def test_typed_numbers_of_a_refusal_by_ticket(start: Callable[..., Any], upstream: Upstream) -> None:
    """What the proxy refuses within a ticket's stream has the number of an error."""
    client, vendor = await take_by_ticket(await start(config=NUMBERS), upstream)
    vendor.close()
    body = await client.read_until(b'"code":"upstream_')
    assert b'data: {"t":4,"r":"' in body
