"""A verdict: what was checked, how it stands, what was seen, and what to change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from proxy.cli.doctor.changes import CHANGES, KINDS
from proxy.cli.doctor.hops import LINES

if TYPE_CHECKING:
    from collections.abc import Collection

Word = Literal["ok", "warn", "fail"]


class Verdict(NamedTuple):
    """One check's verdict; `change` is None where nothing is to be changed."""

    check: str
    verdict: Word
    says: str
    change: str | None = None


def ok(check: str, says: str) -> Verdict:
    """A verdict that nothing is wrong."""
    return Verdict(check, "ok", says)


def warn(check: str, fault: str, says: str, hops: Collection[str] = ()) -> Verdict:
    """A verdict that works, and should be looked at; `fault` names what to change."""
    return Verdict(check, "warn", says, change_of(check, fault, hops))


def fail(check: str, fault: str, says: str, hops: Collection[str] = ()) -> Verdict:
    """A verdict that something is wrong; `fault` names what to change."""
    return Verdict(check, "fail", says, change_of(check, fault, hops))


def change_of(check: str, fault: str, hops: Collection[str] = ()) -> str:
    """What to change: the text, and the lines of the hops that were recognised, or of all where none was."""
    text = CHANGES[check][fault]
    kind = KINDS.get((check, fault))
    if kind is None:
        return text
    lines = LINES[kind]
    named = [name for name in lines if name in hops] or list(lines)
    return f"{text} {'; '.join(f'{name}: {lines[name]}' for name in named)}."
