"""An open socket: one task reads messages and answers them in order, one more for each run that is followed.

No queue lies between a log and the socket. All tasks send through one lock: while the client does not read, one waits
to send and the others, with their cursors, for the lock. The listener closes a socket whose writes stay blocked.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import assert_never

from starlette.types import Message as ASGIMessage
from starlette.websockets import WebSocket, WebSocketDisconnect

from headrace.errors import HeadraceError, InvalidField, InvalidRequest, RequestError, TooManyStreams
from headrace.identity import Principal
from headrace.ports import WireProtocol
from headrace.server import strict_json
from headrace.server.follow import check_frame
from headrace.server.services import Services
from headrace.server.websocket import frames, messages
from headrace.server.websocket.ending import POLICY_VIOLATION, UNSUPPORTED_DATA, Ending, because_of
from headrace.server.websocket.following import Following
from headrace.server.websocket.messages import Auth, Cancel, Follow, Message, Ping, Start, Unfollow

MAX_FOLLOWED = 100
"""Runs that one socket may follow at a time."""
MAX_MALFORMED = 10
"""Messages of one socket that cannot be understood; the last of them ends it."""


class OpenSocket:
    """Serves one client until it leaves, breaks the rules, or `end` is called. Made on the event loop."""

    def __init__(self, websocket: WebSocket, services: Services, principal: Principal) -> None:
        self.principal = principal
        self._websocket = websocket
        self._services = services
        self._followed: dict[str, tuple[Following, asyncio.Task[None]]] = {}
        self._sending = asyncio.Lock()
        self._malformed = 0
        self._over: asyncio.Future[Ending | None] = asyncio.get_running_loop().create_future()
        """Why it is over; None where the client left."""
        self._sent_away = False

    def end(self, error: HeadraceError) -> None:
        """End without fault of the client's doing on this socket: its runs go on."""
        self._sent_away = True
        self._finish(because_of(error))

    async def serve(self) -> Ending | None:
        """Gives what the client is still to be told; None where it has left."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                reading = tasks.create_task(self._read())
                ending = await self._over
                left = list(self._followed.values())
                for task in (reading, *(task for _, task in left)):
                    task.cancel()
        finally:
            self._over.cancel()
        if ending is None:
            self._services.telemetry.cuts += len(left)
        if not self._sent_away:
            await self._cancel_runs([following for following, _ in left])
        return ending

    def _finish(self, ending: Ending | None) -> None:
        if not self._over.done():
            self._over.set_result(ending)

    async def _cancel_runs(self, left: Sequence[Following]) -> None:
        for following in left:
            if following.cancel_on_leave:
                with suppress(HeadraceError):
                    await self._services.runs.cancel(self.principal, following.run_id, by="disconnect")

    # --- sending -----------------------------------------------------------------------------------------------------

    async def _send(self, text: str) -> None:
        """Runs take turns message by message, since a block of one can be megabytes."""
        async with self._sending:
            if self._over.done():  # another task has met the end while this one waited
                raise WebSocketDisconnect
            await self._websocket.send_text(text)

    # --- reading -----------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            await self._send(frames.READY)
            while not self._over.done():
                await self._take(await self._websocket.receive())
        except WebSocketDisconnect:
            self._finish(None)

    async def _take(self, received: ASGIMessage) -> None:
        if received["type"] == "websocket.disconnect":
            self._finish(None)
        elif (text := received.get("text")) is None:
            self._finish(Ending(UNSUPPORTED_DATA, InvalidRequest("Send text messages: each is one JSON object.")))
        else:
            await self._understand(text)

    async def _understand(self, text: str) -> None:
        about: dict[str, str] = {}
        try:
            fields = await strict_json.load(text.encode())
            about = messages.about(fields)
            message = messages.parse(fields)
        except RequestError as error:
            self._malformed += 1
            if self._malformed >= MAX_MALFORMED:
                self._finish(Ending(POLICY_VIOLATION, error, about))
            else:
                await self._send(frames.error(error, about))
            return
        try:
            await self._answer(message)
        except TooManyStreams as error:
            self._finish(Ending(POLICY_VIOLATION, error, about))
        except HeadraceError as error:
            await self._send(frames.error(error, about))

    # --- answers -----------------------------------------------------------------------------------------------------

    async def _answer(self, message: Message) -> None:
        match message:
            case Start():
                await self._start(message)
            case Follow():
                await self._follow(message)
            case Unfollow():
                await self._unfollow(message.run_id)
            case Cancel():
                await self._cancel(message.run_id)
            case Ping():
                await self._send(frames.PONG)
            case Auth():
                raise InvalidRequest("This socket is authenticated already.")
            case _:
                assert_never(message)

    async def _start(self, start: Start) -> None:
        protocol = self._protocol(start.view)
        if start.follow:
            self._check_room()
        elif start.on_disconnect == "cancel":
            detail = "`cancel` only for a run that is followed"
            raise InvalidField(errors=[{"pointer": "/on_disconnect", "detail": detail}])
        self._services.limits.request(self.principal)
        created = await self._services.runs.start(self.principal, start.command(), start.idempotency())
        await self._send(frames.started(start.ref, created))
        if start.follow:
            self._check_unfollowed(created.head.run.id)
            cancel = start.on_disconnect == "cancel"
            self._begin(Following(self._services, created.head, protocol, cancel_on_leave=cancel))

    async def _follow(self, follow: Follow) -> None:
        protocol, after = self._protocol(follow.view), follow.position()
        self._check_unfollowed(follow.run_id)
        self._check_room()
        self._services.limits.request(self.principal)
        head = await self._services.runs.get(self.principal, follow.run_id)
        await check_frame(self._services, head, protocol, after)
        self._begin(Following(self._services, head, protocol, after=after, kinds=follow.only()))

    async def _unfollow(self, run_id: str) -> None:
        """Nothing of the run comes after the answer, whether it was followed or not."""
        if run_id in self._followed:
            _, task = self._followed[run_id]
            task.cancel()
            await asyncio.wait({task})
        await self._send(frames.unfollowed(run_id))

    async def _cancel(self, run_id: str) -> None:
        self._services.limits.request(self.principal)
        result = await self._services.runs.cancel(self.principal, run_id)
        await self._send(frames.cancel(run_id, result))

    def _protocol(self, view: str) -> WireProtocol:
        protocol = self._services.protocols.get(view)
        if protocol is None:
            detail = f"one of {', '.join(sorted(self._services.protocols))}"
            raise InvalidField(errors=[{"pointer": "/view", "detail": detail}])
        return protocol

    # --- followed runs -----------------------------------------------------------------------------------------------

    def _check_room(self) -> None:
        if len(self._followed) >= MAX_FOLLOWED:
            raise TooManyStreams(f"One socket follows at most {MAX_FOLLOWED} runs. Unfollow some, or open another one.")

    def _check_unfollowed(self, run_id: str) -> None:
        if run_id in self._followed:
            raise InvalidRequest("This socket follows the run already. Unfollow it first.")

    def _begin(self, following: Following) -> None:
        task = self._tasks.create_task(self._deliver(following))
        self._followed[following.run_id] = following, task
        # Not by `finally`: a task that is cancelled before its first step never gets there.
        task.add_done_callback(lambda _: self._followed.pop(following.run_id))

    async def _deliver(self, following: Following) -> None:
        try:
            try:
                await following.run(self._send)
            except HeadraceError as error:
                await self._send(frames.error(error, {"run_id": following.run_id}))
        except WebSocketDisconnect:
            self._finish(None)
