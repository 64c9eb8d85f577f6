"""Tokens and cost as metrics: by upstream, model and plan, and summed up by upstream."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class UsageCount:
    """What one model took; `cost` is nano-dollars, of the `priced` exchanges."""

    __slots__ = ("cached", "cost", "input", "output", "priced", "reasoning", "unpriced")

    def __init__(self) -> None:
        self.input = self.output = self.cached = self.reasoning = 0
        self.cost = self.priced = self.unpriced = 0

    def add(self, other: UsageCount) -> None:
        """Count what the other has counted, too."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def by_kind(self) -> tuple[tuple[str, int], ...]:
        """The tokens by the label `kind`."""
        return (
            ("input", self.input),
            ("output", self.output),
            ("cached", self.cached),
            ("reasoning", self.reasoning),
        )


def family(name: str, documentation: str, *labels: str) -> CounterMetricFamily:
    """A counter of ours, without samples yet."""
    return CounterMetricFamily(f"forward_sse_{name}_total", documentation, labels=labels)


def collect_usage(counts: Mapping[tuple[str, str, str], UsageCount]) -> Iterator[CounterMetricFamily]:
    """Yield the families, given what was counted by upstream, plan and model."""
    tokens = family(
        "tokens", "Tokens of exchanges, reported or estimated; `input` has `cached` in it.", "upstream", "kind"
    )
    cost = family("cost_usd", "Cost of exchanges whose model has a price.", "upstream")
    unpriced = family("unpriced_exchanges", "Exchanges whose model has no price.", "upstream")
    model_tokens = family(
        "model_tokens",
        "The same tokens by model and plan; `other`: a model that neither a price nor the configuration names.",
        *("upstream", "model", "plan", "kind"),
    )
    model_cost = family("model_cost_usd", "The same cost by model and plan.", "upstream", "model", "plan")
    upstreams: defaultdict[str, UsageCount] = defaultdict(UsageCount)
    for (upstream, plan, model), count in counts.items():
        upstreams[upstream].add(count)
        for kind, number in count.by_kind():
            model_tokens.add_metric([upstream, model, plan, kind], number)
        if count.priced:
            model_cost.add_metric([upstream, model, plan], count.cost / 1e9)
    for upstream, count in upstreams.items():
        for kind, number in count.by_kind():
            tokens.add_metric([upstream, kind], number)
        if count.priced:
            cost.add_metric([upstream], count.cost / 1e9)
        if count.unpriced:
            unpriced.add_metric([upstream], count.unpriced)
    yield from (tokens, cost, unpriced, model_tokens, model_cost)
