"""Connections to a vendor between two requests: kept as long as the settings and the vendor's own word allow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import CONFIG, token
from tests.peers import Upstream, request
from tests.whole.scenes import BODY

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("field", "more", "own", "connections"),
    [
        pytest.param("X-None: 1", "", "", 1, id="by default"),
        pytest.param("Keep-Alive: timeout=5", "", "", 1, id="vendor says five seconds"),
        pytest.param("Keep-Alive: timeout=1", "", "", 2, id="vendor says one second"),
        pytest.param("Keep-Alive: timeout=never", "", "", 1, id="vendor says nothing readable"),
        pytest.param("X-None: 1", "timeouts: {{keep_alive: off}}\n", "", 2, id="off for all"),
        pytest.param("X-None: 1", "", "timeouts: {{keep_alive: off}}", 2, id="off for this upstream"),
        pytest.param(
            "X-None: 1", "timeouts: {{keep_alive: off}}\n", "timeouts: {{keep_alive: 9s}}", 1, id="on for this upstream"
        ),
    ],
)
async def test_upstream_connection_is_used_again(
    start: Callable[..., Any], upstream: Upstream, field: str, more: str, own: str, connections: int
) -> None:
    """The second request goes over the first one's connection exactly where that may be kept."""
    config = CONFIG.replace('models: ["gpt-*"]', f'models: ["gpt-*"]\n    {own}' if own else 'models: ["gpt-*"]')
    proxy = await start(config=config + more)
    client = await proxy.client()
    answer = f"HTTP/1.1 200 OK\r\n{field}\r\nContent-Length: 2\r\n\r\nok".encode()

    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(answer)
    assert (await client.read_message()).status == 200
    client.write(request(body=BODY, token=token()))
    if connections == 1:
        await vendor.read_message()
    else:
        await vendor.closed()
        vendor, _ = await upstream.take()
    vendor.write(answer)
    assert (await client.read_message()).body == b"ok"

    assert len(upstream.peers) == connections
    assert [line["ending"] for line in await proxy.settled(2)] == ["complete", "complete"]
