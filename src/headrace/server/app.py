"""The route table."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI

from headrace.server import problem
from headrace.server.endpoints import chat, feed, health, runs, tickets
from headrace.server.middleware import RequestLog
from headrace.server.services import Services
from headrace.server.websocket import router as websocket

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(services: Services, *, version: str, lifespan: Lifespan | None = None) -> FastAPI:
    """An ASGI app, to be served by itself or mounted into another."""
    arguments: dict[str, Any] = {"lifespan": lifespan} if lifespan is not None else {}
    app = FastAPI(title="Headrace", version=version, docs_url="/docs", redoc_url=None, **arguments)
    app.state.services = services
    app.include_router(chat.router)
    app.include_router(runs.router)
    app.include_router(feed.router)
    app.include_router(tickets.router)
    app.include_router(websocket)
    app.include_router(health.router)
    app.add_middleware(RequestLog, limits=services.limits)
    problem.install(app)
    return app
