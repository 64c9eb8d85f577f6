"""Tickets: a request set aside for an `EventSource`."""
