"""The route table."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from headrace.server import problem
from headrace.server.endpoints import batch, batches, chat, feed, health, runs, tickets, tools
from headrace.server.middleware import RequestLog
from headrace.server.services import Services
from headrace.server.websocket import router as websocket

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


class Door(FastAPI):
    """FastAPI with `RequestLog` around all of it, its own handling of errors included."""

    def __init__(self, services: Services, **arguments: Any) -> None:
        super().__init__(title="Headrace", docs_url="/docs", redoc_url=None, redirect_slashes=False, **arguments)
        self.state.services = services
        self._outermost = RequestLog(super().__call__, limits=services.limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._outermost(scope, receive, send)


def create_app(services: Services, *, version: str, lifespan: Lifespan | None = None) -> FastAPI:
    """An ASGI app, to be served by itself or mounted into another."""
    app = Door(services, version=version, lifespan=lifespan)
    app.include_router(chat.router)
    app.include_router(batch.router)
    app.include_router(batches.router)
    app.include_router(runs.router)
    app.include_router(tools.router)
    app.include_router(feed.router)
    app.include_router(tickets.router)
    app.include_router(websocket)
    app.include_router(health.router)
    problem.install(app)
    return app
