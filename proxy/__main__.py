"""`python -m proxy` is `forward-sse`."""

from proxy.cli.commands import main

if __name__ == "__main__":
    main()
