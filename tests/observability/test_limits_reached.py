"""Which limit of which plan refused a request or cut a stream, as an operator sees it in the metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.peers import LAST, chunk
from tests.whole.test_admin_whole import samples
from tests.whole.token_scenes import begin, complete, last_event, refused, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Running
    from tests.peers import Upstream


def reached(proxy: Running) -> dict[str, float]:
    scraped = samples(proxy.service.metrics.render().decode())
    return {name: value for name, value in scraped.items() if name.startswith("forward_sse_limits_reached")}


def series(limit: str) -> str:
    return f'forward_sse_limits_reached_total{{limit="{limit}",plan="default"}}'


@pytest.mark.parametrize(
    ("plan", "limit"),
    [
        ("{requests: [1/1h]}", "requests"),
        ("{tokens: [200/1h]}", "tokens"),
        ("{budgets: [{tokens: 200, every: day}]}", "tokens_budget"),
        ("{budgets: [{usd: 0.001, every: month}]}", "usd_budget"),
    ],
)
async def test_limit_that_refused(start: Callable[..., Any], upstream: Upstream, plan: str, limit: str) -> None:
    """A refusal counts for another limit or plan, or one that was let in counts."""
    proxy = await run(start, "openai", plan)
    await complete(proxy, upstream, "openai")
    assert reached(proxy) == {}
    assert (await refused(proxy, "openai")).status == 429
    await proxy.idle()
    assert reached(proxy) == {series(limit): 1}


async def test_limit_of_streams(start: Callable[..., Any], upstream: Upstream) -> None:
    """A refusal for want of a slot counts as one of requests."""
    proxy = await run(start, "openai", "{concurrent_streams: 1}")
    client, vendor, _ = await begin(proxy, upstream, "openai")
    assert (await refused(proxy, "openai")).status == 429
    vendor.write(LAST)
    await client.read_until(LAST)
    await proxy.idle()
    assert reached(proxy) == {series("streams"): 1}


async def test_limit_that_cut(start: Callable[..., Any], upstream: Upstream) -> None:
    """A stream that a budget cut is not counted, although it was let in."""
    proxy = await run(start, "openai", "{budgets: [{tokens: 2000, every: day}], budget_overrun: cut}")
    client, vendor, _ = await begin(proxy, upstream, "openai")
    vendor.write(chunk(last_event(100, 5000)))
    await client.read_to_end()
    await proxy.idle()
    assert reached(proxy) == {series("overrun"): 1}
