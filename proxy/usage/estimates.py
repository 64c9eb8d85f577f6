"""What an exchange took: as the vendor said, or where it did not, by what was learned from streams in which it did.

There is no tokenizer: one that knows every vendor's models does not exist, and a quarter of a token a byte of UTF-8 is
about right for English and Chinese alike. What is learned for each (upstream, model) is how far that is off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.usage.meter import Figures

if TYPE_CHECKING:
    from proxy.usage.meter import Meter, Source

# Tokens a byte, before anything was learned.
SEED: Final = 0.25
# How much the last stream counts.
_WEIGHT: Final = 0.2
# (upstream, model) pairs that are remembered, 200 bytes each; callers choose the model's name.
MAX_LEARNED: Final = 1000
_FIRST_ERROR: Final = 400
# What would teach nothing: a few bytes, of which the vendor's own words are the larger part.
_LEAST_BYTES: Final = 32


class _Learned:
    """Tokens a byte: of the request's body, and of the text of the stream."""

    __slots__ = ("input", "output")

    def __init__(self) -> None:
        self.input = SEED
        self.output = SEED


class Estimates:
    """One worker's; each learns for itself."""

    def __init__(self) -> None:
        self._learned: dict[tuple[str, str], _Learned] = {}

    def figures(self, meter: Meter | None, upstream: str, *, is_whole: bool) -> Figures:
        """The figures of an exchange that has ended; `is_whole` where its response ended as it should.

        Learns from it where the vendor has said everything. Found out once for each meter: whoever asks again, as the
        log does after a client was told, gets the same.
        """
        if meter is None:
            return Figures("none")
        if meter.figures is None:
            meter.figures = self._figures(meter, upstream, is_whole=is_whole)
        return meter.figures

    def _figures(self, meter: Meter, upstream: str, *, is_whole: bool) -> Figures:
        meter.end()
        counts = meter.counts
        model = meter.model or counts.model
        is_told = counts.input is not None or counts.output is not None
        if not is_told and (model is None or (meter.status is not None and meter.status >= _FIRST_ERROR)):
            return Figures("none", model)
        learned = self._learned.get((upstream, model or ""))
        if is_whole and counts.input is not None and counts.output is not None:
            self._learn(upstream, model, meter, counts.input, counts.output)
            return _figures("reported", meter, model, counts.input, counts.output)
        rates = learned or _Learned()
        tokens_in = round(meter.body_bytes * rates.input) if counts.input is None else counts.input
        tokens_out = round(meter.text_bytes * rates.output) if counts.output is None else counts.output
        return _figures("estimated", meter, model, tokens_in, tokens_out)

    def _learn(self, upstream: str, model: str | None, meter: Meter, tokens_in: int, tokens_out: int) -> None:
        if model is None:
            return
        learned = self._learned.get((upstream, model))
        if learned is None:
            if len(self._learned) >= MAX_LEARNED:
                del self._learned[next(iter(self._learned))]
            learned = self._learned[upstream, model] = _Learned()
        if meter.body_bytes >= _LEAST_BYTES:
            learned.input += _WEIGHT * (tokens_in / meter.body_bytes - learned.input)
        if (text_bytes := meter.text_bytes) >= _LEAST_BYTES:
            # What is counted and was not streamed, as hidden thoughts are, belongs to the ratio too.
            learned.output += _WEIGHT * (tokens_out / text_bytes - learned.output)


def _figures(source: Source, meter: Meter, model: str | None, tokens_in: int, tokens_out: int) -> Figures:
    counts = meter.counts
    return Figures(
        source, model, tokens_in, tokens_out, counts.cached or 0, counts.cache_write or 0, counts.reasoning or 0
    )
