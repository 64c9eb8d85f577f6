"""How near the estimates come, by texts whose tokens are known: English, Chinese, Japanese, code, JSON."""

from __future__ import annotations

import random
from itertools import cycle, islice
from typing import TYPE_CHECKING

import orjson
import pytest

from proxy.dialects import DIALECTS
from proxy.usage import Estimates, Meter
from tests.usage.texts import KINDS, TEXTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.usage import Figures
    from tests.usage.texts import Piece

# How far the mean may be off.
TOLERANCE = 0.25
STREAMS = 200
BODY_BYTES = 800


def event(value: dict[str, object]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def delta(piece: Piece) -> bytes:
    choice = {"index": 0, "delta": {"content": piece.text}, "logprobs": None, "finish_reason": None}
    return event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "choices": [choice]})


def run(pieces: Iterable[Piece], estimates: Estimates, *, model: str, usage: int | None) -> Figures:
    """Meter a stream of these pieces, which tells its usage at its end, or breaks off."""
    meter = Meter(DIALECTS["openai"], model=model, body_bytes=BODY_BYTES)
    meter.begin(200, is_stream=True)
    for piece in pieces:
        meter.passed.append(delta(piece))
    if usage is not None:
        told = {"prompt_tokens": BODY_BYTES // 4, "completion_tokens": usage}
        meter.passed.append(event({"id": "chatcmpl-1", "choices": [], "usage": told}))
    return estimates.figures(meter, "main", is_whole=usage is not None)


def some(kind: str, chance: random.Random) -> list[Piece]:
    """The beginning of a text, from five tokens up to twice the text."""
    text = chance.choice(TEXTS[kind])
    return list(islice(cycle(text), chance.randint(5, 2 * len(text))))


def off_by(kinds: list[str], seed: int) -> tuple[float, float]:
    """How far estimates of cancelled streams are off, in the mean and each; after as many streams that ended well."""
    chance, estimates = random.Random(seed), Estimates()
    for _ in range(STREAMS):
        text = some(chance.choice(kinds), chance)
        run(text, estimates, model="m", usage=sum(piece.tokens for piece in text))
    known, estimated, each = 0, 0, 0.0
    for _ in range(STREAMS):
        text = some(chance.choice(kinds), chance)
        tokens = sum(piece.tokens for piece in text)
        figures = run(text, estimates, model="m", usage=None)
        assert figures.source == "estimated"
        known, estimated = known + tokens, estimated + figures.output
        each += abs(figures.output - tokens) / tokens / STREAMS
    return estimated / known - 1, each


@pytest.mark.parametrize("kind", KINDS)
def test_learned(kind: str) -> None:
    """What was learned of a model that writes one kind of text estimates its cancelled streams within a quarter."""
    mean, each = off_by([kind], seed=1)
    assert abs(mean) < TOLERANCE
    assert each < TOLERANCE


def test_learned_of_mixed_texts() -> None:
    """A model that writes all kinds of text is estimated within a quarter in the mean."""
    mean, _ = off_by(KINDS, seed=2)
    assert abs(mean) < TOLERANCE


def test_before_anything_was_learned() -> None:
    """A quarter of a token a byte is about right for prose of any script, and up to half too little for code."""
    chance = random.Random(3)
    for kind, most in {"english": 0.4, "chinese": 0.3, "japanese": 0.3, "code": 0.45, "json": 0.5}.items():
        texts = [some(kind, chance) for _ in range(50)]
        tokens = sum(piece.tokens for text in texts for piece in text)
        estimated = sum(run(text, Estimates(), model="m", usage=None).output for text in texts)
        assert abs(estimated / tokens - 1) < most, kind
