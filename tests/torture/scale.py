"""How much of the fault tests is run: seconds of it in `make test`, the promised numbers in `make torture`.

HEADRACE_TORTURE_SEED repeats what a failed test printed.
"""

import os
import secrets

TORTURE = os.environ.get("HEADRACE_TORTURE") == "1"


def number(normal: int, torture: int) -> int:
    return torture if TORTURE else normal


def seed() -> str:
    """Printed, so that pytest shows it with a failure."""
    chosen = os.environ.get("HEADRACE_TORTURE_SEED") or secrets.token_hex(4)
    print(f"HEADRACE_TORTURE_SEED={chosen}")
    return chosen
