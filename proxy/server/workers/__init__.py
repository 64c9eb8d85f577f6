"""Several processes that serve as one: the arbiter that keeps them, and how they answer for each other."""
