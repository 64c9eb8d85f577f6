"""The steps, a file each; the number in a file's name is its place in the order.

Alembic loads them by their paths; nothing imports them.
"""
