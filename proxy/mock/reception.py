"""From a request to its answer: key, controls, body, endpoint; every refusal in the dialect of the path asked for.

Pure but for reading the body off the connection.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from urllib.parse import parse_qsl, unquote

import orjson
from aiohttp import web

from proxy.mock.answer import Answer, Ask, Received
from proxy.mock.controls import Fault, RefusedError, read_controls
from proxy.mock.routes import OPENAI, find_endpoint

# Twice what a proxy lets through by default.
MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_QUERY_MEMBERS = 1000
BODY_TIMEOUT_S = 30.0


def greet(request: web.BaseRequest, *, number: int, created: int) -> Ask:
    """What can be said of a request before its body is there; enough to refuse it."""
    path, _, query = request.raw_path.partition("?")
    return Ask(
        number=number,
        created=created,
        path=unquote(path),
        raw_query=query,
        # Reversed, so that the first of a repeated field stays. Any byte is some character in Latin-1.
        headers={
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in reversed(request.raw_headers)
        },
    )


async def receive(request: web.BaseRequest) -> Received:
    """Read the body, at most 64 MiB of it and no longer than half a minute.

    The clock also ends a request whose chunks are broken: aiohttp's parser stops there without telling the reader.

    Raises:
        RefusedError: The body is too long (413) or does not come (408).
    """
    # RFC 9110 §10.1.1: a client that asks first gets told to go on.
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            body = await request.read()
    except web.HTTPRequestEntityTooLarge as exc:
        raise RefusedError(413, f"The body exceeds {MAX_BODY_BYTES} bytes.") from exc
    except TimeoutError as exc:
        raise RefusedError(408, "The body did not arrive in time.") from exc
    return Received(request.method, request.raw_path, tuple(request.raw_headers), body)


def admit(ask: Ask, received: Received, *, key: str, interval_ms: int) -> Ask:
    """Complete the ask with query, controls and body, in this order, so that without a key nothing else is told.

    An error that is asked for needs no body.

    Raises:
        RefusedError: The key is missing or wrong (401), a control is (400), or the body is no JSON object (400).
    """
    try:
        members = parse_qsl(ask.raw_query, keep_blank_values=True, max_num_fields=MAX_QUERY_MEMBERS)
    except ValueError as exc:
        raise RefusedError(400, "The query has too many members.") from exc
    ask = replace(ask, query=dict(reversed(members)))
    endpoint = find_endpoint(ask.path, ask.headers)
    if endpoint is None:
        return ask
    if not endpoint.vendor.has_key(ask, key):
        raise RefusedError(401, "Incorrect API key provided: the mock vendor wants its own key.")
    fields = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in received.headers)
    ask = replace(ask, controls=read_controls(members, fields, interval_ms=interval_ms))
    if received.method != "POST" or ask.controls.status is not None:
        return ask
    try:
        body = orjson.loads(received.body)
    except orjson.JSONDecodeError as exc:
        raise RefusedError(400, "We could not parse the JSON body of your request.") from exc
    if not isinstance(body, dict):
        raise RefusedError(400, "The body of your request must be a JSON object.")
    return replace(ask, body=body)


def answer(ask: Ask, method: str) -> Answer:
    """The answer to an admitted request.

    Raises:
        RefusedError: The controls ask for what this endpoint cannot do (400).
    """
    endpoint = find_endpoint(ask.path, ask.headers)
    if endpoint is None:
        return OPENAI.error(ask, 404, "Unknown request URL. Please check the URL for typos.", "unknown_url")
    if method != endpoint.method:
        refusal = endpoint.vendor.error(ask, 405, f"Only {endpoint.method} is allowed here.")
        return replace(refusal, fields=(*refusal.fields, ("Allow", endpoint.method)))
    status = ask.controls.status
    if status is not None:
        failure = endpoint.vendor.error(ask, status, f"The mock was told to answer {status}.")
        retry = (("Retry-After", "1"),) if status == 429 else ()  # noqa: PLR2004  # Too Many Requests
        return replace(failure, fields=(*failure.fields, *retry))
    success = endpoint.answer(ask)
    if ask.controls.fault is Fault.ERROR_EVENT and not success.is_stream:
        raise RefusedError(400, "mock control 'fault': error_event needs a request for a stream")
    return success


def refuse(ask: Ask, refused: RefusedError) -> Answer:
    """The refusal as an answer; the controls, which may be what is wrong, do not apply to it."""
    endpoint = find_endpoint(ask.path, ask.headers)
    return (OPENAI if endpoint is None else endpoint.vendor).error(ask, refused.status, refused.message)
