"""`python -m headrace`, and the `headrace` command."""

import sys

INTERRUPTED = 130
"""Exit code that shells use for what ends by SIGINT."""


def main() -> None:
    try:
        from headrace.cli import main as run  # which takes a while, in which Ctrl-C is to be no traceback

        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
