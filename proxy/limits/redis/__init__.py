"""The limits store that workers and machines share: a Redis server decides, by the Lua scripts of `lua/`.

`RedisStore` is the interface `proxy.limits.store.Store`. redis-py speaks to the server: a single one, the primary that
sentinels name, or the nodes of a Cluster. While the server does not answer, the operator's `on_store_error` decides.
"""

from proxy.limits.redis.address import RedisAddress
from proxy.limits.redis.errors import StoreError
from proxy.limits.redis.inspection import ServerFacts, inspect
from proxy.limits.redis.store import RedisStore

__all__ = ["RedisAddress", "RedisStore", "ServerFacts", "StoreError", "inspect"]
