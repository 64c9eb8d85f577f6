"""The offline vendor: every dialect, every fault, no key needed."""
