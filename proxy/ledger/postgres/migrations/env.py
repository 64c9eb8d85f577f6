"""How Alembic takes a step: on the connection, and in the transaction, of `schema.upgrade`."""

from alembic import context

options = context.config.attributes
context.configure(connection=options["connection"], version_table=options["version_table"])
context.run_migrations()
