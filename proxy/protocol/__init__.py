"""Pure protocol code: HTTP heads and header fields, paths, JSON, server-sent events, CORS.

Bytes and values enter, bytes and values leave: no clock, no socket, no log, no `await`. Each module implements the
standard that its docstring names.
"""
