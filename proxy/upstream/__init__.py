"""The upstream leg: addresses, TLS, connections and their pool."""
