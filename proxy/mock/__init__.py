"""The offline vendor: speaks every dialect, with faults on request, and shares no code with the proxy.

`server` is an aiohttp application of its own, run by `forward-sse mock` and `demo`.
"""
