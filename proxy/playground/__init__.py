"""The playground: a page to see streams with, and what it is told."""
