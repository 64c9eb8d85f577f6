"""Protocol code without I/O: HTTP heads and header fields, paths, JSON, server-sent events, CORS.

Functions take bytes and values and return bytes and values: no clock, no socket, no log, no `await`. Each module
implements the standard that its docstring names.
"""
