"""The playground: a web page that sends requests through the proxy and shows the stream.

`load_page` reads the static files; `Playground` is what the page is told of the upstreams that its user may use. No key
and no header's value leaves.
"""

from proxy.playground.page import Playground, load_page

__all__ = ["Playground", "load_page"]
