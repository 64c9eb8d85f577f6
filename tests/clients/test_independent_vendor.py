"""The clients, the proxy, and a vendor that none of us wrote: it has its own idea of each dialect.

It speaks OpenAI's chat and Responses, Anthropic's Messages and Gemini below `/v1beta`; it has no DashScope, and does
not tell when a client leaves it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from proxy.mock.server import MockVendor
from tests.clients.conftest import Bench, config_of
from tests.clients.every_client import CLIENTS
from tests.conftest import VENDOR_KEY, token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.clients.calls import Client
    from tests.clients.conftest import Hear
    from tests.clients.programs import IndependentVendor
    from tests.peers import Upstream

SPOKEN = [client for client in CLIENTS if client.dialect != "dashscope"]
UNSPOKEN = [client for client in CLIENTS if client.dialect == "dashscope"]
TEXT = "An answer of somebody else's, naïve and 🙂."

# google-genai subclasses aiohttp's ClientSession, which aiohttp discourages; it can go when google-genai stops.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Inheritance class AiohttpClientSession from ClientSession is discouraged:DeprecationWarning"
)


@pytest.fixture
async def bench(start: Callable[..., Any], upstream: Upstream, independent: IndependentVendor) -> AsyncIterator[Bench]:
    """The proxy with the independent vendor behind every dialect; our own mock is asked nothing."""
    async with MockVendor(VENDOR_KEY) as unused:
        proxy = await start(config=config_of(independent.url))
        yield Bench(proxy, unused, upstream, token(), token("bob", plan="tiny"))


@pytest.mark.parametrize("client", SPOKEN, indirect=True, ids=str)
async def test_independent_vendor_stream(client: Client, bench: Bench, hear: Hear) -> None:
    """Text, thoughts and usage arrive; the vendor lets in its own key alone, so ours was exchanged for it."""
    heard = await hear(client, version="v1beta")

    assert heard.failure is None
    assert heard.text == TEXT
    assert heard.thought == ("" if "thought" in client.hides else "First I think.")
    assert heard.usage == (11, 7)
    assert await bench.ending() == "complete"


@pytest.mark.parametrize("client", SPOKEN, indirect=True, ids=str)
async def test_independent_vendor_too_often(client: Client, bench: Bench, hear: Hear) -> None:
    """The vendor's own 429 is the client's error for it, with the vendor's time to wait."""
    heard = await hear(client, prompt="too often", has_own_retries=False, version="v1beta")

    assert heard.failure is not None
    assert (heard.failure.name, heard.failure.status) == (client.limited, 429)
    if "retry_after" not in client.hides:
        assert heard.failure.retry_after == "1"
    assert await bench.ending() == "upstream_error"


@pytest.mark.parametrize("client", UNSPOKEN, indirect=True, ids=str)
async def test_independent_vendor_other_dialect(client: Client, bench: Bench, hear: Hear) -> None:
    """The vendor's 404 for a dialect that it does not speak comes through as it is."""
    heard = await hear(client)

    assert heard.failure is not None
    assert (heard.failure.name, heard.failure.status) == (client.refused, 404)
    assert await bench.ending() == "upstream_error"
