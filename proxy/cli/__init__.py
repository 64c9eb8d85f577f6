"""The command line: the commands, the report of `check`, the demo.

Arguments enter; text and an exit code leave. `commands.main` is the entry point.
"""
