"""`headrace serve` with a chat agent that has two tools: `look`, which may run twice, and `pay`, which may not.

    python serve_tools.py --port PORT --data DIR --model MODEL --gate PORT --ledger FILE

What a tool does is a line in the ledger, on the disk before the tool goes on. Right before and right after it, the tool
tells the gate where it is, and waits for a line from there: whoever listens there can kill this process at that point.
"""

import argparse
import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from headrace import Headrace
from headrace.agents.chat import chat_agent
from headrace.bootstrap.models import choose_model
from headrace.log_output import configure
from headrace.ports import ToolContext
from headrace.server.listener import Listener
from headrace.settings import load_settings
from headrace.toolbox import Toolbox


@dataclass(frozen=True, kw_only=True)
class LedgerTool:
    name: str
    idempotent: bool
    gate: int
    ledger: Path
    description: str = "Writes a line."
    timeout: float = 120.0
    concurrency: int | None = None
    scope: str | None = None
    approval: bool = False

    @property
    def parameters(self) -> Mapping[str, Any]:
        numbers = {name: {"type": "integer"} for name in ("step", "index")}
        return {"type": "object", "properties": {**numbers, "what": {"type": "string"}}}

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> str:
        here = {"key": context.run.input["message"], **arguments}
        await self._at({"place": "before", **here})
        line = {"run": context.run.id, "call": context.tool_call_id, "tool": self.name, **arguments}
        self._append(json.dumps(line).encode() + b"\n")
        await self._at({"place": "after", **here})
        return f"{self.name}: {arguments['what']}"

    async def _at(self, point: Mapping[str, Any]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.gate)
        try:
            writer.write(json.dumps(point).encode() + b"\n")
            if not await reader.readline():
                raise ConnectionError("the gate is gone")
        finally:
            writer.close()

    def _append(self, line: bytes) -> None:
        file = os.open(self.ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, line)
            os.fsync(file)
        finally:
            os.close(file)


async def serve(arguments: argparse.Namespace) -> None:
    settings = load_settings(data=arguments.data, model=arguments.model)
    configure(settings.log_level, settings.log_format)
    place = {"gate": arguments.gate, "ledger": arguments.ledger}
    tools = [LedgerTool(name="look", idempotent=True, **place), LedgerTool(name="pay", idempotent=False, **place)]
    model = await choose_model(settings)
    await model.start()
    headrace = Headrace(settings, agents={"default": chat_agent(model, tools=Toolbox(tools))})
    app: Any = headrace.app
    listener = Listener(app, port=arguments.port, drain=headrace.drain)
    serving = asyncio.create_task(listener.serve())
    started = asyncio.create_task(listener.started.wait())
    await asyncio.wait({serving, started}, return_when=asyncio.FIRST_COMPLETED)
    started.cancel()
    print("Headrace serves", flush=True)
    await serving
    await model.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--gate", type=int)
    parser.add_argument("--ledger", type=Path)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(parser.parse_args()))
