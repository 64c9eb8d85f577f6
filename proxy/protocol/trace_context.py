"""W3C Trace Context: the fields `traceparent` and `tracestate`, read and written.

Pure. https://www.w3.org/TR/trace-context/ (level 1, with level 2's random flag). Whoever cannot read `traceparent` must
not read `tracestate`, and begins a new trace.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from proxy.model import FieldIndex

TRACEPARENT: Final = b"traceparent"
TRACESTATE: Final = b"tracestate"
BAGGAGE: Final = b"baggage"
# A request's fields about its trace, which the proxy's own replace.
TRACE_FIELDS: Final = frozenset({TRACEPARENT, TRACESTATE, BAGGAGE})

SAMPLED: Final = 0x01
RANDOM: Final = 0x02

# §3.2: lower case only. Later versions may have more behind a dash.
_PARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")
_UNKNOWABLE_VERSION: Final = b"ff"
_NO_TRACE, _NO_SPAN = b"0" * 32, b"0" * 16

# §3.3.1: 32 members, each with a key and a value; an empty member is none.
_MOST_MEMBERS: Final = 32
# §3.3.1.5 asks for 512 at least.
_MOST_STATE_BYTES: Final = 4096
_MEMBER: Final = re.compile(
    rb"(?P<key>[a-z0-9][a-z0-9_*/@-]{0,255})=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)


class TraceParent(NamedTuple):
    """What a valid `traceparent` says: ids in lower-case hexadecimal digits, and the flags that are known."""

    trace_id: str
    span_id: str
    flags: int

    @property
    def is_sampled(self) -> bool:
        """Whether the caller records its part of the trace."""
        return bool(self.flags & SAMPLED)


def read_traceparent(index: FieldIndex) -> TraceParent | None:
    """Return what the field says; None where it is missing, twice there, or not valid (§3.2.2, §4.3)."""
    value = index.get(TRACEPARENT)
    if value is None or TRACEPARENT in index.repeated:
        return None
    found = _PARENT.fullmatch(value.strip(b" \t"))
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == _UNKNOWABLE_VERSION or (version == b"00" and more is not None):
        return None
    if trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return TraceParent(trace_id.decode(), span_id.decode(), int(flags, 16) & (SAMPLED | RANDOM))


def read_tracestate(index: FieldIndex) -> bytes:
    """Return the members of all `tracestate` fields, in order; empty where one of them is not valid (§3.3)."""
    if TRACESTATE not in index:
        return b""
    members = [
        member for value in index.every(TRACESTATE) for part in value.split(b",") if (member := part.strip(b" \t"))
    ]
    state = b",".join(members)
    if len(members) > _MOST_MEMBERS or len(state) > _MOST_STATE_BYTES:
        return b""
    keys = [found["key"] for member in members if (found := _MEMBER.fullmatch(member)) is not None]
    return state if len(set(keys)) == len(members) else b""


def write_traceparent(trace_id: str, span_id: str, flags: int) -> bytes:
    """Return the value of a field of version 00."""
    return f"00-{trace_id}-{span_id}-{flags:02x}".encode()
