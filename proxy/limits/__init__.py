"""How much a user may ask: rates and leases, behind one store interface."""
