"""Verdicts as text, one a line, and as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.cli.doctor.verdict import Verdict


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
