"""What an exchange took: as the vendor said, or where it did not, by what was learned from streams in which it did.

There is no tokenizer: one that knows every vendor's models does not exist, and a quarter of a token a byte of UTF-8 is
about right for English and Chinese alike. What is learned for each (upstream, model) is how far that is off, and how
much the model usually writes: by both, what a request will take is foretold before it is sent.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from proxy.usage.meter import Figures
from proxy.usage.outputs import RecentOutputs
from proxy.usage.prices import Tokens

if TYPE_CHECKING:
    from proxy.dialects.usage import Counts
    from proxy.usage.meter import Meter, Source

# Tokens a byte, before anything was learned.
SEED: Final = 0.25
# What earlier streams count after another one: the last twenty make up most of the ratio.
_KEPT: Final = 0.95
# Tokens a byte of one example at most. Images, earlier turns that the vendor keeps, and hidden thoughts take more; but
# what one user asks for, or a vendor makes up, must not make everybody else's requests a hundred times as large.
_MOST_TOKENS_A_BYTE: Final = 8
# What one stream counts at most: a long one is no better an example than several of these.
_MOST_COUNTED_BYTES: Final = 4096
# (upstream, peer, model) that are remembered, 1 KiB each; callers choose the model's name.
MAX_LEARNED: Final = 1000
# RFC 9110 §15.4: from here on a model's work is not what was answered.
_FIRST_OTHER: Final = 300
# What would teach nothing: a few bytes, of which the vendor's own words are the larger part.
_LEAST_BYTES: Final = 32


class _Ratio:
    """Tokens a byte: all tokens over all bytes of the last streams, so that short ones with odd ratios hardly count."""

    __slots__ = ("_bytes", "_tokens", "value")

    def __init__(self) -> None:
        self._tokens = self._bytes = 0.0
        # What was learned, or the seed.
        self.value = SEED

    def learn(self, tokens: int, size: int) -> None:
        """Take another example, of which so many bytes had so many tokens."""
        counted = min(size, _MOST_COUNTED_BYTES)
        self._tokens = self._tokens * _KEPT + min(tokens / size, _MOST_TOKENS_A_BYTE) * counted
        self._bytes = self._bytes * _KEPT + counted
        self.value = self._tokens / self._bytes


class _Learned:
    """Of a model: tokens a byte, of the request's body and of the text of the stream; and how much it writes."""

    __slots__ = ("input", "output", "outputs")

    def __init__(self) -> None:
        self.input = _Ratio()
        self.output = _Ratio()
        self.outputs = RecentOutputs()

    def learn_ratios(self, meter: Meter, figures: Figures) -> None:
        """Take what the vendor has said of an exchange that was read whole."""
        if meter.body_bytes >= _LEAST_BYTES:
            self.input.learn(figures.input, meter.body_bytes)
        if (text_bytes := meter.text_bytes) >= _LEAST_BYTES:
            # What is counted and was not streamed, as hidden thoughts are, belongs to the ratio too.
            self.output.learn(figures.output, text_bytes)


class Estimates:
    """Estimates tokens by what one worker has learned from its exchanges; nothing is shared or kept at a restart."""

    def __init__(self) -> None:
        # The one that was learned of last stands last.
        self._learned: OrderedDict[tuple[str, str, str], _Learned] = OrderedDict()
        # Of all models of an upstream, for those that nothing is known of. Upstreams are the operator's to name.
        self._upstreams: dict[str, RecentOutputs] = {}

    def expected(
        self, upstream: str, model: str | None, *, body_bytes: int, most_output: int, peer: str = ""
    ) -> Tokens:
        """What a request will probably take: by its size, and by what the model, or else its upstream, usually writes.

        `most_output` is what stands for the output where that is less, or nothing was learned. `peer` as of `Meter`.
        """
        learned = self._learned.get((upstream, peer, model or ""))
        usual = None if learned is None else learned.outputs.percentile()
        if usual is None and (others := self._upstreams.get(upstream)) is not None:
            usual = others.percentile()
        rate = SEED if learned is None else learned.input.value
        return Tokens(round(body_bytes * rate), most_output if usual is None else min(usual, most_output))

    def so_far(self, meter: Meter, upstream: str) -> Figures:
        """The figures of an exchange that runs, as they would be if it ended now. Learns nothing."""
        meter.catch_up()
        model = meter.model or meter.counts.model
        if _ran_nothing(meter, model, meter.counts):
            return Figures("none", model)
        return _filled("estimated", meter, model, meter.counts, self._learned.get((upstream, meter.peer, model or "")))

    def shown(self, meter: Meter, upstream: str) -> Figures:
        """The figures of an exchange for an onlooker: as `so_far`, and nothing that is charged or learned changes."""
        if meter.figures is not None:
            return meter.figures
        counts = meter.counts_so_far()
        model = meter.model or counts.model
        if _ran_nothing(meter, model, counts):
            return Figures("none", model)
        is_told = counts.input is not None and counts.output is not None
        source: Source = "reported" if is_told else "estimated"
        return _filled(source, meter, model, counts, self._learned.get((upstream, meter.peer, model or "")))

    def figures(self, meter: Meter | None, upstream: str, *, is_whole: bool) -> Figures:
        """The figures of an exchange that has ended; `is_whole` where its response ended as it should.

        Learns from it: the ratios where the vendor has said everything, the output also where it is estimated. The
        forecast is of what will be charged, and streams whose vendor never says anything are charged by the estimate.
        An answer that broke off says nothing of how long the others are.

        Found out once for each meter: whoever asks again, as the log does after a client was told, gets the same.
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
        if _ran_nothing(meter, model, counts):
            return Figures("none", model)
        is_reported = is_whole and counts.input is not None and counts.output is not None
        key = upstream, meter.peer, model or ""
        learned = self._learned.get(key)
        figures = _filled("reported" if is_reported else "estimated", meter, model, counts, learned)
        if is_reported or (is_whole and figures.output):
            if model is not None:
                if learned is None:
                    learned = self._begin(key)
                else:
                    self._learned.move_to_end(key)
                if is_reported:
                    learned.learn_ratios(meter, figures)
                learned.outputs.add(figures.output)
            self._learn_of_all(upstream, figures)
        return figures

    def _learn_of_all(self, upstream: str, figures: Figures) -> None:
        """Take a whole exchange as an example of all models of its upstream."""
        if figures.output:
            # What writes nothing, as embeddings, is no example of what the upstream's other models write.
            others = self._upstreams.get(upstream)
            if others is None:
                others = self._upstreams[upstream] = RecentOutputs()
            others.add(figures.output)

    def _begin(self, key: tuple[str, str, str]) -> _Learned:
        """Remember one more model; names that somebody makes up push each other out, and not what is in use."""
        if len(self._learned) >= MAX_LEARNED:
            self._learned.popitem(last=False)
        learned = self._learned[key] = _Learned()
        return learned


def _filled(source: Source, meter: Meter, model: str | None, counts: Counts, learned: _Learned | None) -> Figures:
    """What was told, and an estimate of what was not."""
    tokens_in, tokens_out = counts.input, counts.output
    if tokens_in is None:
        tokens_in = round(meter.body_bytes * (SEED if learned is None else learned.input.value))
    if tokens_out is None:
        tokens_out = round(meter.text_bytes * (SEED if learned is None else learned.output.value))
    return Figures(
        source, model, tokens_in, tokens_out, counts.cached or 0, counts.cache_write or 0, counts.reasoning or 0
    )


def _ran_nothing(meter: Meter, model: str | None, counts: Counts) -> bool:
    """Whether no model was run, as far as can be known: no figure told of a count, a redirect, an error."""
    if counts.input is not None or counts.output is not None:
        return False
    return model is None or not meter.runs_model or (meter.status is not None and meter.status >= _FIRST_OTHER)
