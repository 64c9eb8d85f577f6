"""The phases of a request, one module each; none knows another."""
