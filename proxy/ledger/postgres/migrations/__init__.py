"""The steps from one release's schema to the next's, for Alembic: a file each in `versions`, which is never changed.

What enters is a connection in a transaction, from `schema.upgrade`; what leaves is the schema of this release.
"""
