"""The command line: one file a command."""

import os
import sys

from headrace.cli.commands import app
from headrace.cli.output import complain
from headrace.errors import ConfigurationError, HeadraceError

EX_CONFIG = 78
"""Exit code for a process that is set up wrongly (sysexits.h)."""
CLOSED_PIPE = 141
"""Exit code that shells use for what ends by SIGPIPE."""


def main() -> None:
    """Run the command that was typed; an error of ours is one clear line, never a traceback.

    Exit codes: 0 done, 1 an error, 2 a command that cannot be understood, 78 a wrong configuration, 130 Ctrl-C.
    """
    try:
        app()
    except ConfigurationError as error:
        complain(error)
        sys.exit(EX_CONFIG)
    except HeadraceError as error:
        complain(error)
        sys.exit(1)
    except BrokenPipeError:  # whoever read our output has seen enough; there is nothing left to flush to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CLOSED_PIPE)
