"""`headrace serve` with a tool that needs an approval, `pay`; it is a `LedgerTool` of `serve_tools`.

python -m tests.torture.serve_approval --port PORT --data DIR --model MODEL --gate PORT --ledger FILE [--idempotent]
"""

import argparse
import asyncio
from pathlib import Path
from typing import Any

import uvloop
from tests.torture.serve_tools import LedgerTool

from headrace import Headrace
from headrace.log_output import configure
from headrace.server.listener import Listener
from headrace.settings import load_settings


async def serve(arguments: argparse.Namespace) -> None:
    settings = load_settings(data=arguments.data, model=arguments.model, tools=())
    configure(settings.log_level, settings.log_format)
    pay = LedgerTool(
        name="pay", approval=True, idempotent=arguments.idempotent, gate=arguments.gate, ledger=arguments.ledger
    )
    headrace = Headrace(settings, tools=[pay])
    app: Any = headrace.app
    listener = Listener(app, port=arguments.port, drain=headrace.drain)
    serving = asyncio.create_task(listener.serve())
    started = asyncio.create_task(listener.started.wait())
    await asyncio.wait({serving, started}, return_when=asyncio.FIRST_COMPLETED)
    started.cancel()
    print("Headrace serves", flush=True)
    await serving


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--gate", type=int)
    parser.add_argument("--ledger", type=Path)
    parser.add_argument("--idempotent", action="store_true")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(parser.parse_args()))
