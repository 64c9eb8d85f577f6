"""forward-sse: an authenticating reverse proxy for LLM event streams."""

__version__ = "0.1.0"
