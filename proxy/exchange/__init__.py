"""One request's life before and after its stream: head, authentication, body, connection, settlement.

A handler begins an `Exchange` in the registry `Exchanges` and passes it to the functions of this room, each of which
raises the errors that its docstring names. The phases are modules: `head`, `authenticate`, `body`, `reserve`,
`attempts` with `moves`, `connect` and `preamble`; `settle` is the registry's own, and `running` is for what a killed
worker leaves. What leaves is the upstream's response, and in the end one log line.
"""

from proxy.exchange.exchange import EXCHANGE, LOG_FIELDS, PRINCIPAL, Exchange
from proxy.exchange.registry import Exchanges

__all__ = ["EXCHANGE", "LOG_FIELDS", "PRINCIPAL", "Exchange", "Exchanges"]
