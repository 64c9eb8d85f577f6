"""Random faults: no byte of two vendors is ever mixed, and after the first output nobody else is asked."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from proxy.observability.logging import Redactor
from proxy.server.listen import Server
from proxy.server.run import new_event_loop
from proxy.settings import Settings
from tests.conftest import token
from tests.failover.vendors import BODY, DONE, ERROR, PING, ROLE, Vendor, config, error_answer
from tests.peers import LAST, STREAM_HEAD, Message, Peer, chunk, connect, event, request

if TYPE_CHECKING:
    from collections.abc import Sequence

# What a proxy's own error event begins with; no vendor here says it.
OURS = b'data: {"error":{"message":"The upstream'


class Fault(NamedTuple):
    """What a vendor sends to one request: a status, or a stream in these parts, cut into these sizes, and its end."""

    status: int
    parts: tuple[str, ...]
    cuts: tuple[int, ...]
    ends: str

    def body(self, name: str) -> bytes:
        known = {"ping": PING, "role": ROLE, "error": ERROR, "done": DONE}
        return b"".join(known.get(part) or event(f"{name} {part}") for part in self.parts)


FAULTS = st.builds(
    Fault,
    status=st.sampled_from([200, 200, 200, 200, 429, 401, 500, 503, 400]),
    parts=st.lists(st.sampled_from(["ping", "role", "one", "two", "error", "done"]), max_size=6).map(tuple),
    cuts=st.lists(st.integers(1, 120), max_size=4).map(tuple),
    ends=st.sampled_from(["whole", "close", "reset", "silent"]),
)
REQUESTS = st.lists(st.tuples(FAULTS, FAULTS, FAULTS), min_size=1, max_size=4)


def act_of(fault: Fault) -> Any:
    async def act(vendor: Vendor, peer: Peer) -> None:
        if fault.status != 200:
            await peer.send(error_answer(fault.status, vendor.name))
            return
        body = fault.body(vendor.name)
        await peer.send(STREAM_HEAD)
        at = 0
        for size in (*fault.cuts, len(body)):
            piece, at = body[at : at + size], at + size
            if piece:
                await peer.send(chunk(piece))
                await asyncio.sleep(0)
        if fault.ends == "whole":
            await peer.send(LAST)
        elif fault.ends == "close":
            peer.close()
        elif fault.ends == "reset":
            peer.reset()
        else:
            await peer.closed()

    return act


def check(answer: Message, faults: Sequence[Fault], asked: list[int]) -> None:
    name = answer.get("x-forward-sse-upstream")
    assert all(count <= 1 for count in asked)
    if name is None:
        assert answer.get("x-forward-sse-code") in {
            "upstream_unreachable",
            "upstream_timeout",
            "upstream_credentials_exhausted",
        }
        return
    at = "abc".index(name)
    fault = faults[at]
    assert answer.status == fault.status
    if answer.status != 200:
        assert answer.json["error"]["message"] == f"no, says {name}"
        return
    sent = fault.body(name)
    body, _, _ = answer.body.partition(OURS)
    assert sent.startswith(body)
    assert answer.is_whole == (fault.ends == "whole")
    assert not answer.is_whole or body == sent
    # Whoever was asked after another had no output of that one: nobody's output is thrown away, either.
    for earlier, one in enumerate(faults[: sum(asked) - 1]):
        # What was sent before a reset may be lost on its way.
        if one.status == 200 and asked[earlier] and one.ends != "reset":
            beginning = [part for part in one.parts if part not in {"ping", "role", "done"}]
            assert not beginning or beginning[0] == "error"


@settings(max_examples=20, phases=[Phase.explicit, Phase.generate])
@given(REQUESTS, st.booleans())
def test_random_faults(requests: list[tuple[Fault, Fault, Fault]], retry_paid: bool) -> None:
    """However vendors fail: the client gets one vendor's bytes, unchanged, or our error; each vendor is asked once."""

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            vendors = [await stack.enter_async_context(Vendor(name)) for name in "abc"]
            urls = {vendor.name: vendor.url for vendor in vendors}
            retry = f"{{first_output: 150ms, retry_paid: {str(retry_paid).lower()}}}"
            routes = f'{{models: ["gpt-*"], upstreams: [a, b, c], retry: {retry}}}'
            text = config(urls, routes, upstream=", health: {failures: 1000, of_at_least: 1000}")
            values = yaml.safe_load(text.replace("{{", "{").replace("}}", "}"))
            values["timeouts"] = {"keep_alive": "off", "idle": "150ms"}
            server = Server(Settings.model_validate(values), Redactor())
            await server.open()
            stack.push_async_callback(server.close)
            assert server.listen is not None
            for faults in requests:
                before = [len(vendor.asked) for vendor in vendors]
                for state in server.service.rules.states.values():
                    # No key rests: the order is the file's.
                    state.switch(is_off=False)
                for vendor, fault in zip(vendors, faults, strict=True):
                    vendor.script = [act_of(fault)]
                async with await connect(server.listen) as client:
                    client.write(request("/v1/chat/completions", body=BODY, token=token()))
                    answer = await client.read_message()
                check(
                    answer, faults, [len(vendor.asked) - count for vendor, count in zip(vendors, before, strict=True)]
                )
            await server.service.exchanges.idle()
            assert server.service.store.leases_held == 0
            for vendor in vendors:
                await vendor.all_closed()
            assert all(state.running == 0 for state in server.service.rules.states.values())

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(scenario())
