"""The board and the rules on a real Prometheus, which scrapes a service under a load of mixed endings."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp

from tests.conftest import SECRET, token
from tests.needs import need
from tests.observability.prometheus import BOARD, ROOT, prometheus, promtool, queries, with_values
from tests.test_docs import rows
from tests.whole.nodes import node
from tests.whole.several import with_store
from tests.whole.test_admin_whole import samples

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.mock.server import MockVendor
    from tests.limits.redis_support import RedisServer
    from tests.observability.prometheus import Prometheus

# As Grafana would fill them in for everything, at a scrape a second.
VALUES = {"job": ".*", "instance": ".*", "upstream": ".*", "__rate_interval": "10s", "__range": "1m"}
WAIT_S = 45.0
CONFIG = """
listen: 127.0.0.1:0
admin_listen: 127.0.0.1:0
auth:
  jwt:
    - {{issuer: tests, audience: llm, algorithms: [HS256], secret: "{secret}"}}
    - {{issuer: "http://127.0.0.1:{dead}/", audience: llm, algorithms: [RS256], jwks_url: "http://127.0.0.1:{dead}/jwks"}}
plans:
  default: {{requests: [100000/1h], concurrent_streams: 100}}
  once: {{requests: [1/1h]}}
  alone: {{concurrent_streams: 1}}
  rated: {{tokens: [1/1h]}}
  poor: {{budgets: [{{usd: 0.000001, every: month}}]}}
  small: {{budgets: [{{tokens: 1, every: day}}]}}
timeouts: {{connect: 2s, first_byte: 500ms, idle: 500ms}}
usage: {{ledger: "sqlite:///{folder}/ledger.db"}}
# The collector is away.
telemetry: {{otlp: "http://127.0.0.1:{dead}", traces: true, metrics: true}}
upstreams:
  dead: {{url: "http://127.0.0.1:{dead}", dialect: openai, api_key: none, health: {{failures: 2, out_for: 5m}}}}
  mock:
    {{url: "http://127.0.0.1:{vendor}", dialect: openai, api_keys: [revoked, mock-key], models: ["*"], ask_usage: true}}
  anthropic: {{url: "http://127.0.0.1:{vendor}", dialect: anthropic, api_key: mock-key, models: ["claude-*"]}}
routes:
  - {{models: ["gpt-*"], upstreams: [dead, mock], retry: {{on: [connect]}}}}
default_upstream: mock
"""
CHAT = "/v1/chat/completions"
REFUSING_PLANS = {
    "once": "requests",
    "alone": "streams",
    "rated": "tokens",
    "poor": "usd_budget",
    "small": "tokens_budget",
}


class Ask(NamedTuple):
    """A request of the load."""

    path: str = CHAT
    model: str = "gpt-4o"
    plan: str = "default"
    token: str | None = None
    leaves: bool = False


ENDINGS = {
    "client_closed",
    "complete",
    "refused",
    "timeout_first_byte",
    "timeout_idle",
    "upstream_closed",
    "upstream_error",
}
SILENT = f"/mock{CHAT}?events=2&interval_ms=600000"
WAVE = (
    Ask(),
    Ask(f"{CHAT}?events=20&interval_ms=5"),
    Ask("/v1/messages?events=5", "claude-sonnet-4-5"),
    Ask(f"/mock{CHAT}", "gpt-4o-mini"),
    # Without a price.
    Ask(f"/mock{CHAT}", "of-a-client"),
    Ask(SILENT, leaves=True),
    Ask(f"/mock{CHAT}?status=500"),
    Ask(f"/mock{CHAT}?fault=truncate&fault_after=2"),
    Ask(f"/mock{CHAT}?first_byte_ms=60000"),
    Ask(f"/mock{CHAT}?fault=stall&fault_after=2"),
    Ask(f"/dead{CHAT}"),
    Ask(token="no token"),
    Ask("/nobody/v1/chat/completions"),
    # The first of each is let in.
    *(Ask(SILENT if plan == "alone" else f"/mock{CHAT}", plan=plan) for plan in REFUSING_PLANS for _ in range(2)),
)


async def ask(session: aiohttp.ClientSession, url: str, one: Ask) -> None:
    """Ask as a client does, and take what comes, or leave after the first bytes."""
    credential = one.token or token(user=f"user-of-{one.plan}", plan=one.plan)
    body = {"model": one.model, "stream": True, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}
    # A stream that breaks off is an ending like others.
    with contextlib.suppress(aiohttp.ClientError):
        async with session.post(
            url + one.path, json=body, headers={"Authorization": f"Bearer {credential}"}
        ) as response:
            if one.leaves:
                await response.content.readany()
            else:
                await response.read()


async def until_data(
    server: Prometheus, asked: list[tuple[str, str]], session: aiohttp.ClientSession, url: str
) -> None:
    """Send one wave after the other until each query has returned data once."""
    missing = list(asked)
    try:
        async with asyncio.timeout(WAIT_S):
            while missing:
                await asyncio.gather(*(ask(session, url, one) for one in WAVE))
                has_data = [await server.has_data(with_values(query, VALUES)) for _, query in missing]
                missing = [one for one, has in zip(missing, has_data, strict=True) if not has]
    except TimeoutError:
        assert missing == []
        raise


async def until_rules_are_evaluated(server: Prometheus) -> list[dict[str, Any]]:
    """All rules, once each has been evaluated."""
    async with asyncio.timeout(WAIT_S):
        while True:
            rules = [rule for group in (await server.ask("rules"))["groups"] for rule in group["rules"]]
            if rules and all(rule["health"] != "unknown" for rule in rules):
                return rules
            await asyncio.sleep(0.1)


async def test_every_panel_has_data(tmp_path: Path, store: RedisServer, vendor: MockVendor) -> None:
    """A panel's query returns nothing under load, a rule cannot be evaluated, or a metric is in no panel."""
    need("prometheus")
    with socket.socket() as dead:
        # Bound and not listening: connections are refused, and nobody else gets the port.
        dead.bind(("127.0.0.1", 0))
        text = CONFIG.format(secret=SECRET, dead=dead.getsockname()[1], vendor=vendor.port, folder=tmp_path)
        async with (
            node(tmp_path / "proxy.yaml", text + with_store(store.url), workers=2) as one,
            aiohttp.ClientSession() as session,
            prometheus(tmp_path, session, one.admin_address) as server,
        ):
            await until_data(server, list(queries()), session, f"http://{one.address[0]}:{one.address[1]}")
            rules = await until_rules_are_evaluated(server)
            reached = await server.ask("label/limit/values")
            endings = await server.ask("label/ending/values")
            outcomes = await server.ask("label/outcome/values")
            found = await variables(server)
            text = (await one.ask("/metrics")).body.decode()
            failed = one.all("exchange.failed") + one.all("library.reported")

    assert [(rule["name"], rule["lastError"]) for rule in rules if rule["health"] != "ok"] == []
    assert failed == []
    assert set(REFUSING_PLANS.values()) <= set(reached)
    assert set(endings) >= ENDINGS
    assert {"ok", "connect", "credentials", "5xx", "timeout", "failed"} <= set(outcomes)
    scraped = samples(text)
    # Out in both workers, and 1 all the same.
    assert scraped['forward_sse_upstream_out{upstream="dead"}'] == 1
    assert sorted(value for name, value in scraped.items() if "key_resting{" in name and '"mock"' in name) == [0, 1]
    assert scraped["forward_sse_workers_configured"] == 2
    assert found == {"job": True, "instance": True, "upstream": True}
    exposed = labels_of(text)
    assert names_in(BOARD.read_text()) == exposed.keys() - UNSEEN
    assert listed_metrics() == {name: labels for name, labels in exposed.items() if name not in UNSEEN}
    assert promtool("check", "metrics", stdin=text) == ""


UNSEEN = {
    # The conventions' own, for everybody's boards: docs/telemetry.md has them.
    *("gen_ai_client_operation_duration_seconds", "gen_ai_client_token_usage"),
    *("gen_ai_server_time_to_first_token_seconds", "gen_ai_server_time_per_output_token_seconds"),
}


def names_in(text: str) -> set[str]:
    """The metrics that a text names; of a histogram's series the histogram."""
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"forward_sse_\w+", text)}


def labels_of(text: str) -> dict[str, set[str]]:
    """The metrics of a scrape with their labels."""
    return {
        family: {
            label
            for name in samples(text)
            if names_in(name) == {family}
            for label in re.findall(r'(\w+)="', name)
            if label != "le"
        }
        for family in re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)
    }


def listed_metrics() -> dict[str, set[str]]:
    """The metrics of the table in docs/operating.md with their labels."""
    table = rows(ROOT / "docs/operating.md", "Metrics")
    listed = [pair for row in table for pair in re.findall(r"`(\w+)(?:\{([\w,]+)\})?`", row[0])]
    return {f"forward_sse_{name}": set(filter(None, labels.split(","))) for name, labels in listed}


async def variables(server: Prometheus) -> dict[str, bool]:
    """Whether each of the board's variables has values."""
    found = {}
    asked = re.findall(r'"definition": "label_values\((.+), (\w+)\)"', BOARD.read_text())
    for selector, label in asked:
        series = with_values(selector.replace('\\"', '"'), VALUES)
        found[label] = bool(await server.ask(f"label/{label}/values", **{"match[]": series}))
    return found
