"""Measure Headrace against a C relay, a bare ASGI relay and what people write by hand.

python bench/run.py [--quick] [--no-save]
"""

import argparse
import os
import platform
import resource
import sys
from datetime import UTC, datetime

from rich.console import Console

import report
from measure import cores
from scenarios import FULL, QUICK, Results, run_all


def allow_many_files() -> None:
    """As many open files as the system lets us have, for this process and the servers that it starts."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short turn each: about two minutes")
    parser.add_argument("--no-save", action="store_true", help="leave docs/performance.md and the last results alone")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    cores()
    allow_many_files()
    results = Results(
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        size=QUICK if arguments.quick else FULL,
        python=platform.python_version(),
        load_average=os.getloadavg()[0],
    )
    with console.status("starting") as status:
        run_all(results, status.update)
    report.show(results, console)
    if not arguments.no_save:
        report.save(results)


if __name__ == "__main__":
    main()
