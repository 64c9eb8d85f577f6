"""The upstream upstream_route: addresses, TLS, connections and their pool."""
