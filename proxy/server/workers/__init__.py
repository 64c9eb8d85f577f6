"""Several processes that serve as one: gunicorn's arbiter and worker, and the channel between workers.

`arbiter.run` starts the workers on shared sockets and returns the exit code. A worker answers for all of them
(`all_workers`): it asks the others over Unix sockets (`peers`). `socket_handoff` passes the sockets to the next
generation in an upgrade.
"""
