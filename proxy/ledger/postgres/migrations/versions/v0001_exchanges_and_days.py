"""The tables of the first release: one row an exchange, and the totals of days."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# Compared byte by byte: indexes do not depend on the system's collations, which change with its C library.
TEXT = sa.Text(collation="C")
KEY = ("issuer", "user", "day", "plan", "upstream", "model", "ending", "code")
TOKENS = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")


def upgrade() -> None:
    """Create both tables."""
    op.create_table(
        "exchanges",
        sa.Column("row_id", TEXT, primary_key=True),
        sa.Column("id", TEXT, nullable=False),
        sa.Column("ended_ms", sa.BigInteger, nullable=False),
        *(sa.Column(name, TEXT, nullable=False) for name in ("issuer", "user", "plan")),
        *(sa.Column(name, TEXT) for name in ("upstream", "model", "dialect")),
        sa.Column("status", sa.Integer),
        sa.Column("ending", TEXT, nullable=False),
        sa.Column("code", TEXT),
        sa.Column("ttfb_ms", sa.Double),
        sa.Column("duration_ms", sa.Double, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("bytes", "events", *TOKENS)),
        sa.Column("cost_nano", sa.BigInteger),
        sa.Column("currency", TEXT, nullable=False),
        sa.Column("usage", TEXT, nullable=False),
        sa.Column("price_version", TEXT),
        sa.Column("attempts", sa.Integer, nullable=False),
    )
    op.create_index("exchanges_of_user", "exchanges", ["issuer", "user", "row_id"])
    op.create_table(
        "days",
        *(
            sa.Column(name, sa.Integer if name == "day" else TEXT, primary_key=True, autoincrement=False)
            for name in KEY
        ),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("requests", *TOKENS, "cost_nano", "unpriced")),
    )
    op.create_index("days_of_all", "days", ["day"])
