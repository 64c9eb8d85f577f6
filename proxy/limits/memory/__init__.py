"""The limits store of a single worker, in its memory: exact, and never waits.

See `proxy.limits.store` for what enters and leaves.
"""

from proxy.limits.memory.store import MemoryStore

__all__ = ["MemoryStore"]
