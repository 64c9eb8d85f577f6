"""The limits store that workers and machines share: a Redis server decides, by the Lua scripts of `lua/`.

`RedisStore` is the interface `proxy.limits.store.Store`. Commands leave on one pipelined connection; while the server
does not answer, the operator's `on_store_error` decides.
"""

from proxy.limits.redis.dial import RedisAddress
from proxy.limits.redis.store import RedisStore

__all__ = ["RedisAddress", "RedisStore"]
