"""The console: what an operator's page shows of all workers, about once a second.

A worker's `Collector` makes its `Part` of the picture when it is asked: the streams that a `Choice` wants, sums,
counters, upstreams. The parts of all workers enter the `Feed` of the worker that an operator is connected to; what
leaves are events, the first a whole picture, those after it what has changed. Nothing is collected while nobody
watches, and nothing of what streams say leaves. The page itself is `static/`.
"""

from proxy.console.choice import Choice
from proxy.console.collector import Collector
from proxy.console.feed import Feed, Source
from proxy.console.page import load_page
from proxy.console.picture import Part, Parts

__all__ = ["Choice", "Collector", "Feed", "Part", "Parts", "Source", "load_page"]
