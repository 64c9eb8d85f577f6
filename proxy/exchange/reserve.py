"""Reserve: what a request will probably take of its user's token rates and budgets, before it is sent.

A request reserves what is likely, not the most that is possible: with `max_tokens: 32000` in each of 200 short requests
the most would be millions. What it then takes beyond that is charged when it is settled, as debt.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from proxy.dialects import DIALECTS
from proxy.errors import ProxyError
from proxy.model import Amounts
from proxy.usage import Meter
from proxy.usage.model_name import may_name_model, model_in, model_read

if TYPE_CHECKING:
    from proxy.exchange.exchange import Exchange
    from proxy.model import Route
    from proxy.protocol.json_text import Steps
    from proxy.routing import Turns


async def reserve(exchange: Exchange, model: str | None, turns: Turns) -> None:
    """Reserve tokens and money for an admitted request that has a route; settling it gives back what is left.

    One that runs no model (a list of models, the state of a task) needs nothing, and passes however its user stands.
    Cancelling is safe. A request that is refused here is refunded: it was not sent.

    Raises:
        RateLimitExceededError, InsufficientQuotaError: a token rate or a budget has no room.
        LimitsUnavailableError: the store cannot be asked.
    """
    admission = exchange.admission
    if admission is None or (model is None and not exchange.checked_route.body):
        return
    estimate = await turns.run(_estimate(exchange, model))
    try:
        await exchange.rules.store.reserve(admission, estimate)
    except ProxyError:
        exchange.refund()
        raise
    # The user's standing has changed, and perhaps who counts.
    exchange.admit(admission)


async def meter_of(route: Route, turns: Turns) -> Meter:
    """Make the meter of a request that goes there."""
    dialect = DIALECTS[route.dialect]
    runs_model, may_name = _path_says(route.dialect, route.target.partition(b"?")[0])
    model = None if may_name else model_read(route.body_model)
    if model is None:
        model = await turns.run(model_in(route.target, route.body))
    # In the order of the parameters: by their names it takes half as long again.
    meter = Meter(dialect, model, len(route.body), peer_of(route))
    meter.runs_model = runs_model
    return meter


# Paths are the clients' text, as long as a head's line: 1 MiB for all, by default. A query may hold a credential.
@lru_cache(maxsize=128)
def _path_says(dialect: str, path: bytes) -> tuple[bool, bool]:
    """Whether a path, without its query, is for a model's work, and whether it may name the model."""
    return DIALECTS[dialect].runs_model(path), may_name_model(path)


def peer_of(route: Route) -> str:
    """Whose server it is, where the client chose it: an envelope's target, which teaches nothing of others."""
    return route.host.decode("latin-1") if route.is_pinned else ""


def _estimate(exchange: Exchange, model: str | None) -> Steps[Amounts]:
    """Foretell what the request will take."""
    route, rules = exchange.checked_route, exchange.rules
    dialect, most_output = DIALECTS[route.dialect], 0
    # Of an answer of which nothing is known nothing is charged but the request.
    if dialect.is_readable:
        bound = yield from dialect.output_bound(route.fields, route.body)
        most_output = rules.reserve_output if bound is None else min(bound, rules.reserve_output)
    tokens = exchange.registry.estimates.expected(
        route.upstream, model, body_bytes=len(route.body), most_output=most_output, peer=peer_of(route)
    )
    return Amounts(tokens.input + tokens.output, rules.prices.cost(model, tokens) or 0)
