"""One process: runs the event loop, listens on the sockets, handles signals, drains, and closes.

Settings enter; connections are served by the applications of `proxy.app`. `connection` adds what aiohttp's server lacks
on the open internet; `workers` runs several processes as one service. `run.run` is the entry point.
"""
