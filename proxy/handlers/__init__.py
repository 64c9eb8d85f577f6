"""The endpoints, a module each, as aiohttp handlers.

A handler takes aiohttp's request and returns aiohttp's response. What it shares with others is the `Service` under the
application's key `SERVICE`; what it refuses it raises as a `ProxyError`, of which `errors.translate` makes the answer.
"""

from proxy.handlers.service import SERVICE, Service

__all__ = ["SERVICE", "Service"]
