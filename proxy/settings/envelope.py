"""Settings of the envelope form: the targets that a request may name, and where they may resolve to."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from proxy.settings.model import Model
from proxy.settings.scalars import Flag, Network, TargetUrl, Text, not_empty


def _read_method(value: object) -> object:
    return value.lower() if isinstance(value, str) and value.isascii() else value


_METHODS = ("get", "post", "put", "patch", "delete")
# Case-insensitive, like the envelope's own `method`.
EnvelopeMethod = Annotated[
    Literal["get", "post", "put", "patch", "delete"],
    BeforeValidator(_read_method),
    WithJsonSchema({"enum": [*_METHODS, *map(str.upper, _METHODS)], "type": "string"}),
]


class EnvelopeTarget(Model):
    """A target that envelopes may name."""

    url: TargetUrl = Field(description="An exact origin and a path; `*` in the path matches anything.")
    upstream: Text | None = Field(None, description="The upstream whose key and limits apply; its origin must be same.")
    methods: Annotated[tuple[EnvelopeMethod, ...], not_empty("must not be empty; leave it out for get and post")] = (
        Field(("get", "post"), description="The methods that an envelope may ask for.")
    )
    allow_unpinned: Flag = Field(
        default=False,
        description="Whether an egress proxy may be used, which looks up the target's name itself: its addresses are "
        "not checked then.",
    )


class Envelope(Model):
    """The `{targetUrl, method, body, header}` form of POST /forward-sse."""

    targets: Annotated[
        tuple[EnvelopeTarget, ...], not_empty("must not be empty; leave `envelope` out to have none")
    ] = Field(description="The targets that an envelope may name.")
    allow_private: tuple[Network, ...] = Field((), description="CIDR blocks, not global, that a target may resolve to.")
