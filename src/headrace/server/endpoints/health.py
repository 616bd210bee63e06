"""Whether the process lives, whether it can take work, and its numbers."""

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from headrace.errors import HeadraceError, NotFound
from headrace.server.endpoints.parameters import Door, caller

router = APIRouter(tags=["health"])


@router.get("/health/live", summary="Is the process alive?")
async def live() -> Response:
    return JSONResponse({"status": "live"})


@router.get("/health/ready", summary="Can it take runs?")
async def ready(services: Door) -> Response:
    if services.open_streams.draining:
        return JSONResponse({"status": "draining"}, 503)
    if not await services.ready():
        return JSONResponse({"status": "unavailable"}, 503)
    return JSONResponse({"status": "ready"})


@router.get("/metrics", summary="Prometheus metrics")
async def metrics(request: Request, services: Door) -> Response:
    if not services.metrics_public:
        await _require_scope(request, "metrics")
    return Response(services.telemetry.render(), media_type="text/plain; version=1.0.0; charset=utf-8")


async def _require_scope(request: Request, scope: str) -> None:
    """What a caller may not see does not exist for them."""
    try:
        principal = await caller(request)
    except HeadraceError:
        raise NotFound from None
    if scope not in principal.scopes:
        raise NotFound
