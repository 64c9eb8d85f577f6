"""`python -m proxy` is `forward-sse`."""

from proxy.cli import main

if __name__ == "__main__":
    main()
