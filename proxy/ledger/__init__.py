"""The ledger: one row for each exchange that passed authentication, on disk, for whoever asks what was used.

A settled exchange enters as a `Row`, which never waits; sums leave, by a `Query`. An SQLite file on the node is the
whole ledger, or the spool from which the rows are shipped to PostgreSQL: `file` is that file, `writer` the thread that
commits to it, `sql` the statements of both databases, `sqlite` the ledger of one node.
"""

from proxy.ledger.reading import Book
from proxy.ledger.row import COLUMNS, Column, Ledger, Query, Row, Sums

__all__ = ["COLUMNS", "Book", "Column", "Ledger", "Query", "Row", "Sums"]
