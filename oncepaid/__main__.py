"""`python -m oncepaid` and the `oncepaid` command."""

import os
import signal


def main() -> None:
    """Run the command line. A SIGTERM that comes before anything was begun ends it with 0."""
    # Imports take a second or two; nothing is held before they are done.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from oncepaid.cli import main as run_command

    run_command()


if __name__ == "__main__":
    main()
