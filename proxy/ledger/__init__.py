"""The ledger: one row for each exchange that passed authentication, on disk, for whoever asks what was used.

A settled exchange enters as a `Row`, which never waits; sums leave, by a `Query`. An SQLite file on the node is the
whole ledger, or the spool from which a process of its own ships the rows to PostgreSQL.
"""

from proxy.ledger.row import Ledger, Query, Row, Sums

__all__ = ["Ledger", "Query", "Row", "Sums"]
