"""What can go wrong with the server, in words for an operator; redis-py's exceptions end here."""

from __future__ import annotations

import re
import ssl
from typing import NamedTuple

from redis.crc import REDIS_CLUSTER_HASH_SLOTS
from redis.exceptions import AskError, InvalidResponse, MovedError, RedisError, ResponseError

from proxy.protocol.tls_alerts import CLIENT_CERTIFICATE_ALERTS, alert_of

# What a call of redis-py's may raise: its own errors, a socket's, and of a server that says what no server should,
# those of its parsers, which are of any kind.
UNEXPECTED = (RedisError, OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError)


class StoreError(Exception):
    """The server did not do what was asked; the text is short, for operators, and holds nothing of a command."""


class ConnectionLostError(StoreError):
    """No answer came: nobody knows whether the command was done."""


class Redirect(NamedTuple):
    """Which node of a Cluster to ask instead: for a slot from now on (MOVED), or this once (ASK)."""

    slot: int
    host: str
    port: int


class ServerError(StoreError):
    """The server answered that it did not do it; `code` is the first word, such as OOM."""

    def __init__(self, text: str, *, code: str | None = None, redirect: Redirect | None = None) -> None:
        within = _WITHIN_A_SCRIPT.search(text)
        self.code = within[1] if within is not None else code or text.partition(" ")[0]
        self.redirect = redirect
        super().__init__(_MEANINGS.get(self.code, f"the server answers {self.code[:32]}"))


# Before Redis 7, what a command within a script answered stands behind an ERR of the script's.
_WITHIN_A_SCRIPT = re.compile(r"@user_script: ?\d+: -([A-Z]+) ")
_MEANINGS = {
    "CLUSTERDOWN": "the cluster is down",
    "CROSSSLOT": "the server belongs to a cluster (redis+cluster://)",
    "ERR": "the server refuses a command (is it Redis 6.2 or later?)",
    "LOADING": "the server is loading its data",
    "MISCONF": "the server cannot save, and takes no writes",
    "MOVED": "the server belongs to a cluster (redis+cluster://)",
    "NOAUTH": "the server wants a password",
    "NOPERM": "the user of the server may not run the commands",
    "OOM": "the server is out of memory",
    "READONLY": "the server is a replica",
    "UNSERVED": "the cluster serves not all slots",
    "TRYAGAIN": "the user's keys are being moved to another node",
    "WRONGPASS": "the server refuses the password",
}


def answered_error(error: RedisError) -> ServerError | None:
    """Translate an error that the server answered; None where redis-py made it itself, so that no answer came.

    Not by class alone: redis-py raises an answered NOAUTH or LOADING as a subclass of its ConnectionError.
    """
    if error.status_code is None and not isinstance(error, ResponseError):
        return None
    redirect = None
    if isinstance(error, AskError) and 0 <= error.slot_id < REDIS_CLUSTER_HASH_SLOTS:  # MovedError is one
        redirect = Redirect(error.slot_id, error.host, error.port)
    code = "MOVED" if isinstance(error, MovedError) else error.status_code
    if code == "CLUSTERDOWN" and "slot" in str(error):
        # Of one slot; the others may well be served.
        code = "UNSERVED"
    return ServerError(str(error), code=code, redirect=redirect)


def translated(error: BaseException, otherwise: str) -> StoreError:
    """Translate what redis-py or a socket raised; `otherwise` is the text where nothing better is known."""
    # redis-py raises an error of its own for what a socket raised, and for some answers while it dials.
    causes = (error, error.__context__)
    for cause in causes:
        if isinstance(cause, RedisError):
            answered = answered_error(cause)
            if answered is not None:
                return answered
    if isinstance(error, InvalidResponse) or not isinstance(error, RedisError | OSError):
        return ConnectionLostError("the server does not speak the protocol")
    for cause in causes:
        if isinstance(cause, ssl.SSLError):
            return ConnectionLostError(_of_tls(cause))
    return ConnectionLostError(otherwise)


def _of_tls(error: ssl.SSLError) -> str:
    """What a failure of TLS was. With TLS 1.3 a server's alert may come as late as in place of the first answer."""
    alert = alert_of(error)
    if alert == "CERTIFICATE_REQUIRED":
        return "the server wants a client certificate"
    if alert in CLIENT_CERTIFICATE_ALERTS:
        return "the server does not trust our certificate"
    return "the server's certificate is not trusted, or it speaks no TLS"
