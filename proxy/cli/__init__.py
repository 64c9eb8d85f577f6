"""The command line: the commands, the report of `check`, the demo."""
