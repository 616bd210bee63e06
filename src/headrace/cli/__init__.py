"""The command line: one file a command."""

import sys

from rich.console import Console

from headrace.cli.commands import app
from headrace.errors import ConfigurationError, HeadraceError

EX_CONFIG = 78
"""Exit code for a process that is set up wrongly (sysexits.h)."""


def main() -> None:
    """Run the command that was typed; an error of ours is one clear line, never a traceback."""
    try:
        app()
    except ConfigurationError as error:
        _say(error)
        sys.exit(EX_CONFIG)
    except HeadraceError as error:
        _say(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _say(error: HeadraceError) -> None:
    Console(stderr=True).print(f"headrace: {error.message}", style="red", highlight=False, markup=False, soft_wrap=True)
