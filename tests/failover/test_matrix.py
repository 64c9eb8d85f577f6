"""Each kind of failure, at each place of a route's list: who was asked, with which bytes, and what the client saw."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.conftest import token
from tests.failover import vendors as acts
from tests.failover.vendors import BODY, ERROR, PING, ROLE, Vendor, config, words
from tests.peers import Message, event, only, request

if TYPE_CHECKING:
    from tests.conftest import Running, Start

LIST = "[a, {name: b, model: other}, c]"
BODY_OF_B = BODY.replace(b'"gpt-x"', b'"other"')


class Kind(NamedTuple):
    """A failure: what the vendor does, whether the request moves on, and what the client sees where it is the last."""

    act: Any
    moves: bool
    status: int
    code: str | None = None
    paid: bool = False
    upstream_status: int | None = None


KINDS = {
    "connect": Kind(None, True, 502, "upstream_unreachable"),
    "429": Kind(acts.status(429), True, 429, upstream_status=429),
    "500": Kind(acts.status(500), True, 500, upstream_status=500),
    "529": Kind(acts.status(529), True, 529, upstream_status=529),
    "401": Kind(acts.status(401), True, 502, "upstream_credentials_exhausted", upstream_status=401),
    "402": Kind(acts.status(402), True, 402, upstream_status=402),
    "error event": Kind(acts.says_error, True, 200, upstream_status=200),
    "empty stream": Kind(acts.is_empty, True, 200, upstream_status=200),
    "lost": Kind(acts.loses, False, 502, "upstream_unreachable", paid=True),
    "lost in the preamble": Kind(
        acts.loses_preamble, False, 502, "upstream_unreachable", paid=True, upstream_status=200
    ),
    "first_output, no head": Kind(acts.is_silent, False, 504, "upstream_timeout", paid=True),
    "first_output, pings": Kind(acts.pings, False, 504, "upstream_timeout", paid=True, upstream_status=200),
    "400": Kind(acts.status(400), False, 400, upstream_status=400),
    "404": Kind(acts.status(404), False, 404, upstream_status=404),
    "302": Kind(acts.status(302), False, 302, upstream_status=302),
}


async def ask(proxy: Running, body: bytes = BODY, path: str = "/v1/chat/completions") -> Message:
    client = await proxy.client()
    client.write(request(path, body=body, token=token()))
    return await client.read_message()


async def start_with(start: Start, vendors: list[Vendor], retry: str, *, more: str = "") -> Running:
    urls = {vendor.name: vendor.url for vendor in vendors}
    routes = f'{{models: ["gpt-*"], upstreams: {LIST}{retry}}}'
    return await start(config=config(urls, routes, more=more))  # type: ignore[no-any-return]  # the factory's are open


async def check_end(proxy: Running, vendors: list[Vendor], answer: Message) -> dict[str, Any]:
    """One lease, one charge, one line, and no connection left."""
    line = only(await proxy.settled(), "exchange.settled")
    assert proxy.leases_held == 0
    assert answer.get("x-ratelimit-remaining-requests") == "99"
    for vendor in vendors:
        await vendor.all_closed()
    assert not [one for one in proxy.lines() if one["event"] in {"exchange.failed", "library.reported"}]
    assert line["id"] == answer.get("x-forward-sse-id")
    return line


@pytest.mark.parametrize("retry_paid", [False, True], ids=["paid once", "retry_paid"])
@pytest.mark.parametrize("position", [0, 1, 2], ids=["first", "second", "last"])
@pytest.mark.parametrize("name", KINDS)
async def test_matrix(start: Start, vendors: list[Vendor], name: str, position: int, *, retry_paid: bool) -> None:
    """A failure moves the request on where nothing can be paid twice; nobody else's bytes are mixed in."""
    kind = KINDS[name]
    for before in vendors[:position]:
        before.script = [acts.status(503)]
    failing = vendors[position]
    failing.script = [kind.act]
    if kind.act is None:
        await failing.stop()
    retry = f", retry: {{first_output: 300ms, retry_paid: {str(retry_paid).lower()}}}"
    proxy = await start_with(start, vendors, retry)

    answer = await ask(proxy)

    moves = kind.moves or (kind.paid and retry_paid)
    line = await check_end(proxy, vendors, answer)
    served = position + 1 if moves and position < 2 else position
    asked = [int(at <= served and not (kind.act is None and at == position)) for at in range(3)]
    assert [len(vendor.asked) for vendor in vendors] == asked
    for vendor in vendors:
        for message in vendor.asked:
            assert message.body == (BODY_OF_B if vendor.name == "b" else BODY)
            assert message.get("authorization") == f"Bearer key-of-{vendor.name}"
            assert message.start.split(" ")[1] == "/v1/chat/completions"
    assert [attempt["upstream"] for attempt in line["attempts"]] == [vendor.name for vendor in vendors[: served + 1]]
    if served != position:
        check_served(answer, vendors[served], line, attempts=served + 1)
    elif position == 2 and moves and kind.code is not None:
        # Nobody has a better answer than the last that a vendor gave: the second's.
        assert (answer.status, answer.json["error"]["message"]) == (503, "no, says b")
        assert answer.get("x-forward-sse-upstream") == line["upstream"] == "b"
    else:
        check_failed(answer, kind, failing, line, attempts=served + 1)
    assert line["attempts"][position]["status"] == kind.upstream_status


def check_served(answer: Message, vendor: Vendor, line: dict[str, Any], *, attempts: int) -> None:
    """The whole answer of one vendor, and who it was."""
    assert (answer.status, answer.body, answer.is_whole) == (200, words(vendor.name), True)
    assert answer.get("x-forward-sse-upstream") == line["upstream"] == vendor.name
    assert answer.get("x-forward-sse-attempts") == str(attempts)
    assert (line["ending"], line["code"], line["usage"]) == ("complete", None, "estimated")
    assert line["model"] == ("other" if vendor.name == "b" else "gpt-x")
    assert line["attempts"][-1]["ending"] == "complete"


def check_failed(answer: Message, kind: Kind, vendor: Vendor, line: dict[str, Any], *, attempts: int) -> None:
    """The failing vendor's answer, or ours where it gave none."""
    assert answer.status == kind.status
    assert answer.get("x-forward-sse-code") == kind.code == line["code"]
    if kind.code is not None:
        assert answer.get("x-forward-sse-upstream") is None
        assert answer.json["error"]["code"] == kind.code
        return
    assert answer.get("x-forward-sse-upstream") == vendor.name
    assert answer.get("x-forward-sse-attempts") == str(attempts)
    if kind.act is acts.says_error:
        assert answer.body == PING + ROLE + ERROR + acts.DONE
    elif kind.act is acts.is_empty:
        assert answer.body == PING
    else:
        assert json.loads(answer.body)["error"]["message"] == f"no, says {vendor.name}"


@pytest.mark.parametrize("position", [0, 1, 2])
async def test_output_is_never_followed_by_another_vendor(start: Start, vendors: list[Vendor], position: int) -> None:
    """After the first output there is no failover: the client sees what came, and that it broke off."""
    for before in vendors[:position]:
        before.script = [acts.says_error]
    vendors[position].script = [acts.breaks]
    proxy = await start_with(start, vendors, ", retry: {first_output: 5s, retry_paid: true}")

    answer = await ask(proxy)

    assert (answer.status, answer.is_whole) == (200, False)
    assert answer.body.startswith(ROLE + event(f"{vendors[position].name} one"))
    line = await check_end(proxy, vendors, answer)
    assert line["ending"] == "upstream_closed"
    assert [len(vendor.asked) for vendor in vendors] == [1] * (position + 1) + [0] * (2 - position)
    assert line["attempts"][-1]["ending"] == "upstream_closed"


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.moves and name not in {"401", "402"}])
async def test_without_retry_nothing_is_tried_again(start: Start, vendors: list[Vendor], name: str) -> None:
    """A route without `retry` sends a request once, and holds nothing back."""
    kind = KINDS[name]
    vendors[0].script = [kind.act]
    if kind.act is None:
        await vendors[0].stop()
    proxy = await start_with(start, vendors, "")

    answer = await ask(proxy)

    line = await check_end(proxy, vendors, answer)
    assert [len(vendor.asked) for vendor in vendors[1:]] == [0, 0]
    check_failed(answer, kind, vendors[0], line, attempts=1)
