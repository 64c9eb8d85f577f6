"""One process: its listeners, its signals, its end."""
