"""The connection to upstreams: addresses, TLS, connections and their pool."""
