"""A verdict: what was checked, how it stands, what was seen, and what to change; as text, one a line, and as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal, NamedTuple

from proxy.cli.doctor.changes import CHANGES, KINDS
from proxy.cli.doctor.hops import LINES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

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


def line(verdict: Verdict) -> str:
    """Write one line: the verdict, the check, what was seen, and what to change."""
    change = "" if verdict.change is None else f" Change: {verdict.change}"
    return _printable(f"{verdict.verdict:<4}  {verdict.check:<13} {verdict.says}{change}")


def as_json(verdicts: Iterable[Verdict]) -> str:
    """Write the document of `--json`."""
    return json.dumps({"verdicts": [verdict._asdict() for verdict in verdicts]}, indent=2)


def exit_code(verdicts: Iterable[Verdict]) -> int:
    """1 where one fails, else 0."""
    return 1 if any(verdict.verdict == "fail" for verdict in verdicts) else 0


def _printable(text: str) -> str:
    """The text without what a terminal would obey: it may quote what another machine said."""
    return "".join(character if character.isprintable() else "?" for character in text)
