"""A vendor that counts what it generates agrees with the log's lines, however streams end."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from tests.usage.counting_vendor import CountingVendor, Load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tests.conftest import Running
    from tests.usage.counting_vendor import Asked, Generated

CONFIG = """
listen: 127.0.0.1:0
admin_listen: 127.0.0.1:0
auth:
  jwt:
    - {{issuer: tests, audience: llm, algorithms: [HS256], secret: "{secret}"}}
plans: {{default: {{}}}}
timeouts: {{idle: 30s}}
"""
STREAMS = 400
TOLERANCE = 0.25
FIGURES = ("input_tokens", "output_tokens", "usage")


def check_counted(
    rows: Iterable[Mapping[str, Any]], generated: Mapping[str, Generated], asked: Mapping[str, Asked], lost: set[str]
) -> None:
    """Each request that reached the vendor, but for those that were lost with a worker, has one row that is true."""
    by_id = {row["id"]: row for row in rows if row["id"] in asked}
    assert Counter(row["id"] for row in rows if row["id"] in asked).most_common(1)[0][1] == 1
    assert generated.keys() - by_id.keys() <= lost
    known, estimated = defaultdict[str, int](int), defaultdict[str, int](int)
    for id_, one in generated.items():
        row = by_id.get(id_)
        if row is None:
            continue
        if one.how == "refused":
            assert row["usage"] == "none", (row, one)
        elif one.how == "left_early":
            assert (row["usage"], row["output_tokens"]) == ("estimated", 0), (row, one)
        elif row["usage"] == "reported":
            assert one.is_told or one.dialect in {"gemini", "dashscope"}, (row, one)
            assert (row["input_tokens"], row["output_tokens"]) == (one.tokens_in, one.tokens_out), (row, one)
        else:
            assert row["usage"] == "estimated", (row, one)
            assert not (one.is_told and row["ending"] == "complete"), (row, one)
            known[one.kind] += one.tokens_out
            estimated[one.kind] += row["output_tokens"]
    assert len(known) == 5
    for kind, tokens in known.items():
        assert abs(estimated[kind] / tokens - 1) < TOLERANCE, (kind, tokens, estimated[kind])


async def test_lines_agree_with_the_vendor(start: Callable[..., Any]) -> None:
    """Of streams of every dialect, text and end: one line each, what was reported equal, the estimates within 25 %."""
    async with CountingVendor() as vendor:
        proxy: Running = await start(vendor.upstreams, config=CONFIG)
        load = Load(lambda: f"http://{proxy.address[0]}:{proxy.address[1]}", seed=7)
        await load.run(STREAMS)
        lines = await proxy.settled(STREAMS)
    assert not vendor.twice
    assert not [one for one in load.asked.values() if one.is_lost]
    check_counted(lines, vendor.generated, load.asked, lost=set())
