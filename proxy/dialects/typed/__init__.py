"""Each dialect's stream translated to typed events (contract §9).

`reader` has what all readers share, and a module for each dialect reads its events into pieces; `translator` writes the
pieces as typed events.
"""
