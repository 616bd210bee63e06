"""A server for `test_problem.py`: settings from the environment, and an agent that lets a secret slip.

`python canary_server.py` prints its port; it ends when its standard input does.
"""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from typing import Any

from headrace.agents.generator import generator_agent
from headrace.bootstrap import Headrace
from headrace.log_output import configure
from headrace.ports import RunContext
from headrace.server.listener import Listener
from headrace.settings import load_settings


async def slip(context: RunContext) -> AsyncGenerator[str, None]:
    secret = os.environ["CANARY_LOCAL"]
    yield "half of it"
    raise RuntimeError(os.environ["CANARY_EXCEPTION"], len(secret))


async def main() -> None:
    settings = load_settings(port=0)
    configure(settings.log_level, settings.log_format)
    headrace = Headrace(settings, agents={"slip": generator_agent(slip)})
    app: Any = headrace.app
    listener = Listener(app, port=0, drain=headrace.drain, grace=1.0)
    serving = asyncio.create_task(listener.serve())
    await listener.started.wait()
    print(listener.ports[0], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    listener.stop()
    await serving


asyncio.run(main())
