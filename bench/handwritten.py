"""What people write by hand: FastAPI's own SSE, the openai SDK, and an ORM object committed for each event.

python bench/handwritten.py PORT UPSTREAM_URL MODEL DATA_DIR
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import uvicorn
from fastapi import FastAPI
from fastapi.sse import EventSourceResponse, ServerSentEvent
from openai import AsyncOpenAI
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class ChatRequest(BaseModel):
    message: str


class Base(DeclarativeBase):
    pass


class Event(Base):
    __tablename__ = "events"

    run_id: Mapped[str] = mapped_column(primary_key=True)
    offset: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    content: Mapped[str]


class Log:
    """The events of one run; what is added is committed when `add` comes back."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session
        self.run_id = uuid4().hex
        self.offset = 0

    async def add(self, kind: str, content: str, shown: dict[str, str]) -> ServerSentEvent:
        self.offset += 1
        self.session.add(Event(run_id=self.run_id, offset=self.offset, kind=kind, content=content))
        await self.session.commit()
        return ServerSentEvent(id=f"{self.run_id}-{self.offset}", data={"type": kind, **shown})


def make_app(url: str, model: str, data: Path) -> FastAPI:
    engine = create_async_engine(f"sqlite+aiosqlite:///{data / 'events.db'}", connect_args={"timeout": 60})
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    client = AsyncOpenAI(base_url=url, api_key="none")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with engine.begin() as connection:
            await connection.execute(text("PRAGMA journal_mode=WAL"))
            await connection.run_sync(Base.metadata.create_all)
        yield
        await engine.dispose()

    app = FastAPI(lifespan=lifespan)

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/api/agent/chat", response_class=EventSourceResponse)
    async def chat(request: ChatRequest) -> AsyncIterator[ServerSentEvent]:
        async with sessions() as session:
            log = Log(session)
            yield await log.add("start", "", {"message_id": log.run_id})
            question: Any = [{"role": "user", "content": request.message}]
            async for chunk in await client.chat.completions.create(model=model, messages=question, stream=True):
                content = chunk.choices[0].delta.content
                if content:
                    yield await log.add("token", content, {"content": content})
            yield await log.add("end", "", {"message_id": log.run_id})

    return app


if __name__ == "__main__":
    port, url, model, data = sys.argv[1:]
    uvicorn.run(make_app(url, model, Path(data)), host="127.0.0.1", port=int(port), log_level="warning")
