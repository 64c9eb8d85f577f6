"""A step each; the number in a file's name is its place in the order."""
