"""Texts with known numbers of tokens: each is a list of pieces that a vendor would stream, with the tokens of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, NamedTuple


class Piece(NamedTuple):
    """What one event carries: whole characters, of one token or, where a character takes several, of these."""

    text: str
    tokens: int


def _read() -> dict[str, list[list[Piece]]]:
    written = json.loads(Path(__file__).with_name("texts.json").read_text("utf-8"))
    return {kind: [[Piece(*piece) for piece in text] for text in texts] for kind, texts in written["texts"].items()}


TEXTS: Final = _read()
KINDS: Final = sorted(TEXTS)
