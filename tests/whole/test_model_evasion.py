"""Users who would have what they ask for at another model's price, or at none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest

from tests.conftest import token
from tests.peers import LAST, STREAM_HEAD, chunk, request
from tests.whole.token_scenes import BODY, EVENTS, MODEL, PATHS, refused, run, sse

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.peers import Upstream

PLAN = "{budgets: [{usd: 0.0005, every: month}]}"
REST = orjson.dumps({name: value for name, value in BODY.items() if name != "model"})[1:]
# Target's end, and body: what the vendor will run is `MODEL` in each.
DECOYS = {
    "within another member": ("", b'{"metadata": {"model": "free"}, "model": "%b",' % MODEL.encode() + REST),
    "before the one that counts": ("", b'{"model": "free", "model": "%b",' % MODEL.encode() + REST),
    "beside escaped letters": ("", b'{"x": {"model": "free"}, "mod\\u0065l": "%b",' % MODEL.encode() + REST),
    "in the query": ("?x=/models/free:", b'{"model": "%b",' % MODEL.encode() + REST),
}


@pytest.mark.parametrize("dialect", ["openai", "dashscope"])
@pytest.mark.parametrize("decoy", DECOYS)
async def test_decoy(start: Callable[..., Any], upstream: Upstream, decoy: str, dialect: str) -> None:
    """What a model costs is charged by the model that the vendor runs, wherever else another one is named."""
    query, body = DECOYS[decoy]
    proxy = await run(start, dialect, PLAN)
    client = await proxy.client()
    client.write(request(PATHS[dialect] + query, body, token=token()))
    vendor, _ = await upstream.take()
    first, second = EVENTS[dialect]
    vendor.write(STREAM_HEAD + chunk(sse(first)) + chunk(sse(second)) + LAST)
    await client.read_until(LAST)

    (line,) = await proxy.settled()
    assert line["model"] == MODEL
    assert line["cost_usd"] is not None
    assert (await refused(proxy, dialect)).get("x-forward-sse-code") == "insufficient_quota"
    await vendor.gone()
