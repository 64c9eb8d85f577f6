"""The ledger in PostgreSQL: rows wait in a spool on the node, and a process of its own ships them.

What enters is a `Row`, which goes into the spool as into the SQLite ledger; what leaves are the rows in the database's
tables, and sums that the shipper is asked for. SQLAlchemy, Alembic and the driver belong to the shipper (`python -m
proxy.ledger.ship`) and to `forward-sse usage`; workers import none of the modules that need them.
"""

from proxy.ledger.postgres.ledger import PostgresLedger
from proxy.ledger.postgres.place import SpoolPlace

__all__ = ["PostgresLedger", "SpoolPlace"]
