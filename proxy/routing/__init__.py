"""Where a request goes: by name, path, model or envelope, and with which headers and key.

A `Destination`, the request's head and its body enter the `Router`; a `Route` leaves, ready to be sent, or a 400, 403
or 404 error. `Rules` is one loaded configuration: a reload replaces it as a whole. `Turns` limits how many large bodies
are parsed at a time.
"""

from proxy.routing.router import Destination, Router
from proxy.routing.rules import Rules
from proxy.routing.turns import Turns

__all__ = ["Destination", "Router", "Rules", "Turns"]
