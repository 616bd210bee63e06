"""The file of a batch job as it arrives: line by line into operations.

A line is `{"id", "method", "path", "body"}` like an item of `POST /api/batch`; only `body` has to be there. All of the
file is looked through before anything is started.
"""

import asyncio
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headrace.batch.jobs.file import NewJobFile, Operation
from headrace.errors import (
    BatchFileInvalid,
    BatchPathForbidden,
    BatchTooLarge,
    BodyTooLarge,
    HeadraceError,
    InvalidField,
    MethodNotAllowed,
    NotFound,
)
from headrace.identity import Principal
from headrace.ports import StartCommand
from headrace.protocols.agent_chat import ChatRequest
from headrace.protocols.name import Name
from headrace.protocols.native import StartRun
from headrace.server import strict_json
from headrace.server.endpoints.tools import Execute
from headrace.server.problem import field_error
from headrace.server.services import Services

M = TypeVar("M", bound=BaseModel)

_MOST_FAULTS = 20
_LINES_AT_A_TIME = 100
"""That are looked through in a turn of the event loop, which is some milliseconds."""
_CHAT, _RUNS = "/api/agent/chat", "/api/runs"
_EXECUTE = re.compile(r"/api/tools/([^/]+)/execute")


class JobLine(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    id: Name | None = None
    """Without one, the number of the line is it."""
    method: str = "POST"
    path: str = Field(default=_CHAT, max_length=8192)
    body: dict[str, Any]


class JobLines:
    """Fed with the bytes of a file. Faults are collected, since a caller wants to know of more than the first one.

    However many lines come at once, others have their turn in between.
    """

    def __init__(self, services: Services, principal: Principal, file: NewJobFile) -> None:
        self.digest = hashlib.sha256()
        self._services = services
        self._principal = principal
        self._file = file
        self._rest = bytearray()
        self._size = 0
        self._number = 0
        self._ids: set[str] = set()
        self._faults: list[dict[str, Any]] = []

    async def feed(self, chunk: bytes) -> None:
        """Raises `BodyTooLarge` and `BatchTooLarge`."""
        self.digest.update(chunk)
        self._size += len(chunk)
        if self._size > self._services.batch.max_bytes:
            raise BodyTooLarge
        *lines, rest = chunk.split(b"\n")
        if lines:
            lines[0] = bytes(self._rest) + lines[0]
            self._rest = bytearray(rest)
        else:
            self._rest += rest
        for line in lines:
            await self._take(line)
        self._check_length(self._rest)

    async def end(self) -> None:
        """Raises `BatchFileInvalid`, and what `feed` raises."""
        await self._take(bytes(self._rest))
        if not self._faults and not self._file.count:
            self._faults.append({"line": 1, "detail": "the file has no operation"})
        if self._faults:
            raise BatchFileInvalid(errors=self._faults)

    async def _take(self, line: bytes) -> None:
        self._check_length(line)
        self._number += 1
        if self._number % _LINES_AT_A_TIME == 0:
            await asyncio.sleep(0)
        most = self._services.batch.max_lines
        if self._number > 2 * most + 1:  # blank lines cost time as well
            raise BatchTooLarge(f"A file has at most {2 * most:,} lines here, blank ones included.")
        line = line.strip(b" \t\r")
        if not line or len(self._faults) >= _MOST_FAULTS:
            return
        if self._file.count >= most:
            raise BatchTooLarge(f"A batch job has at most {most:,} operations here. Send several.")
        try:
            operation = self._operation(await strict_json.load(line))
        except (HeadraceError, ValidationError) as error:
            self._faults.append({"line": self._number, "detail": _words(error)})
        else:
            self._file.write(operation)

    def _check_length(self, line: bytes | bytearray) -> None:
        """Of the next line, or of what there is of it."""
        if len(line) - line.endswith(b"\r") > self._services.max_body_bytes:
            raise BodyTooLarge(f"Line {self._number + 1} of the file is larger than this server takes as one body.")

    def _operation(self, document: dict[str, Any]) -> Operation:
        line = JobLine.model_validate(document)
        id = line.id if line.id is not None else str(self._number)
        if id in self._ids:
            raise InvalidField("an earlier line has this id")
        self._ids.add(id)
        if line.path == _CHAT:
            return self._run(line, id, ChatRequest)
        if line.path == _RUNS:
            return self._run(line, id, StartRun)
        if (match := _EXECUTE.fullmatch(line.path)) is not None:
            return self._tool(line, id, match[1])
        raise BatchPathForbidden("no operation of a job: /api/agent/chat, /api/runs and /api/tools/NAME/execute are")

    def _run(self, line: JobLine, id: str, body_type: type[ChatRequest] | type[StartRun]) -> Operation:
        _check_method(line)
        body = _body(body_type, line)
        if isinstance(body, ChatRequest) and body.model not in (None, *self._services.models()):
            raise InvalidField(errors=[{"pointer": "/body/model", "detail": "no model of this name is served here"}])
        command = _command(body)
        if not self._services.runs.has_agent(command.agent):
            raise NotFound("there is no such agent")
        return Operation(
            id=id,
            kind="chat" if body_type is ChatRequest else "run",
            agent=command.agent,
            input=command.input,
            conversation_id=command.conversation_id,
        )

    def _tool(self, line: JobLine, id: str, name: str) -> Operation:
        _check_method(line)
        parameters = _body(Execute, line).parameters
        if self._services.tools.find(name, self._principal.scopes) is None:
            raise NotFound("there is no such tool")
        if faults := self._services.tools.faults(name, parameters):
            raise InvalidField(errors=_within("/body/parameters", faults))
        return Operation(id=id, kind="tool", agent="tool", input={"tool": name, "parameters": parameters})


def _body(body_type: type[M], line: JobLine) -> M:
    """Raises `HeadraceError` with pointers into the line."""
    try:
        return body_type.model_validate(line.body)
    except ValidationError as error:
        raise field_error([{**each, "loc": ("body", "body", *each["loc"])} for each in error.errors()]) from error


def _command(body: ChatRequest | StartRun) -> StartCommand:
    """Raises `HeadraceError` with pointers into the line."""
    try:
        return body.command()
    except InvalidField as error:
        raise InvalidField(errors=_within("/body", error.extra["errors"])) from error


def _within(place: str, faults: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    return [{**fault, "pointer": place + fault["pointer"]} for fault in faults]


def _check_method(line: JobLine) -> None:
    if line.method != "POST":
        raise MethodNotAllowed("an operation of a job is a POST")


def _words(error: HeadraceError | ValidationError) -> str:
    if isinstance(error, ValidationError):
        error = field_error([{**each, "loc": ("body", *each["loc"])} for each in error.errors()])
    faults = error.extra.get("errors", ())
    where = "; ".join(f"{fault.get('pointer', '')} {fault['detail']}".strip() for fault in faults)
    return (where or error.message)[:500]
