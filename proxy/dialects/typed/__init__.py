"""Each dialect's stream translated to typed events (docs/behaviour.md#typed-events).

`reader` has what all readers share, and a module for each dialect reads its events into pieces; `translator` writes the
pieces as typed events.
"""
