"""Every error a user can meet, in one tree.

    HeadraceError                        500 internal
    ├── RequestError
    │   ├── InvalidRequest               400 request.invalid
    │   ├── InvalidJSON                  400 body.invalid_json
    │   ├── BodyTooDeep                  400 body.too_deep
    │   ├── DuplicateKey                 400 body.duplicate_key
    │   ├── BodyTooLarge                 413 body.too_large
    │   ├── RequestTimeout               408 request.timeout
    │   ├── URITooLong                   414 request.uri_too_long
    │   ├── HeadersTooLarge              431 request.headers_too_large
    │   ├── UnsupportedMediaType         415 body.unsupported_media_type
    │   ├── InvalidField                 422 field.invalid
    │   ├── ForbiddenField               422 field.forbidden
    │   ├── NotFound                     404 not_found
    │   ├── MethodNotAllowed             405 method_not_allowed
    │   ├── NotAcceptable                406 not_acceptable
    │   ├── InvalidIdempotencyKey        400 idempotency.invalid_key
    │   ├── IdempotencyMismatch          422 idempotency.mismatch
    │   ├── ConversationBusy             409 conversation.busy
    │   ├── RunActive                    409 run.active
    │   └── InputDecided                 409 input.decided
    ├── BatchError
    │   ├── BatchTooLarge                413 batch.too_large
    │   ├── BatchPathForbidden           400 batch.path_forbidden
    │   ├── BatchHeaderForbidden         422 batch.header_forbidden
    │   ├── BatchStreamForbidden         422 batch.stream_forbidden
    │   ├── BatchReferenceInvalid        422 batch.reference_invalid
    │   ├── DependencyFailed             424 batch.dependency_failed
    │   ├── BatchTimeout                 504 batch.timeout
    │   └── BatchFileInvalid             422 batch.file_invalid
    ├── PositionError
    │   ├── InvalidPosition              400 cursor.invalid
    │   ├── AmbiguousPosition            400 cursor.ambiguous
    │   ├── PositionAhead                409 cursor.ahead
    │   ├── ForeignPosition              409 cursor.foreign
    │   └── PositionGone                 410 cursor.gone
    ├── AuthError
    │   ├── AuthMissing                  401 auth.missing
    │   ├── AuthInvalid                  401 auth.invalid
    │   ├── AuthRevoked                  401 auth.revoked
    │   ├── AuthAmbiguous                400 auth.ambiguous
    │   └── OriginDenied                 403 origin.denied
    ├── LimitError
    │   ├── TooManyRequests              429 limit.requests
    │   ├── TooManyStreams               429 limit.streams
    │   └── BudgetExceeded               402 budget.exceeded
    ├── ServiceError
    │   ├── StreamDisabled               403 stream.disabled
    │   ├── BatchDisabled                403 batch.disabled
    │   ├── Draining                     503 server.draining
    │   ├── StorageFull                  503 storage_full
    │   └── StorageFailed                503 storage_failed
    ├── RunError
    │   ├── Interrupted                  503 interrupted
    │   ├── RunTimeout                   504 limit.total_time
    │   ├── RunIdle                      504 limit.idle_time
    │   ├── TooManySteps                 500 limit.max_steps
    │   ├── AgentFailed                  500 agent.failed
    │   ├── ToolOutcomeUnknown           409 tool_outcome_unknown
    │   ├── AnswerRestarted              409 answer.restarted
    │   └── Cancelled                    499 run.cancelled
    ├── ToolError                        (raised by tools)
    │   ├── ToolFailed                   500 tool.failed
    │   ├── ToolTimeout                  504 tool.timeout
    │   ├── ToolArgumentsInvalid         422 tool.arguments_invalid
    │   ├── ToolRefused                  422 tool.refused
    │   ├── ToolNotApproved              403 tool.not_approved
    │   ├── ToolUnavailable              502 tool.unavailable
    │   ├── SQLDenied                    422 tool.sql_denied
    │   └── URLDenied                    422 tool.url_denied
    ├── ModelError                       (mapped at the provider's edge)
    │   ├── ModelBadRequest              502 model.bad_request
    │   ├── ModelAuthFailed              502 model.auth
    │   ├── ModelNotFound                502 model.not_found
    │   ├── ModelRateLimited             429 model.rate_limited
    │   ├── ModelQuotaExceeded           429 model.quota_exceeded
    │   ├── ModelOverloaded              503 model.overloaded
    │   ├── ModelUnavailable             502 model.unavailable
    │   ├── ModelTimeout                 504 model.timeout
    │   ├── ModelCut                     502 model.cut
    │   ├── ModelGarbage                 502 model.garbage
    │   ├── ModelEmpty                   502 model.empty
    │   ├── ModelOutputInvalid           502 model.output_invalid
    │   ├── ContextTooLong               422 model.context_too_long
    │   └── ContentFiltered              422 model.content_filtered
    ├── LogError
    │   ├── LogClosed                    409 log.closed
    │   ├── Fenced                       409 log.fenced
    │   └── LogCorrupt                   500 log_corrupt
    ├── ClientError                      (raised by `headrace.client` only)
    │   ├── Unreachable                  503 client.unreachable
    │   ├── StreamCut                    502 client.stream_cut
    │   └── UnexpectedAnswer             502 client.unexpected_answer
    └── ConfigurationError               500 configuration

`status` is the HTTP status, `code` is stable, `detail` is a fixed sentence with the next step. What came from outside
(a provider's text, a path, a key) never goes into them: it goes to the log of the server through `__cause__`.
"""

from typing import Any, ClassVar

from headrace.events import ErrorInfo


class HeadraceError(Exception):
    """Root of the tree. `extra` holds members that are safe to show, such as `first_available` or `errors`."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    detail: ClassVar[str] = "The server failed to handle this. Its operator finds why by the request id."
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str | None = None, *, retry_after: float | None = None, **extra: Any) -> None:
        super().__init__(detail or self.detail)
        self.message = detail or self.detail
        self.retry_after = retry_after
        self.extra = extra

    def info(self) -> ErrorInfo:
        """The error as it stands in a log."""
        return ErrorInfo(code=self.code, message=self.message, status=self.status, retryable=self.retryable)


class RequestError(HeadraceError):
    """The request cannot be taken as it is."""


class InvalidRequest(RequestError):
    status, code = 400, "request.invalid"
    detail = "The request is not well formed."


class InvalidJSON(RequestError):
    status, code = 400, "body.invalid_json"
    detail = "The body is not a JSON object in UTF-8. Numbers must be finite and text must be valid Unicode."


class BodyTooDeep(RequestError):
    status, code = 400, "body.too_deep"
    detail = "The body is nested deeper than 64 levels."


class DuplicateKey(RequestError):
    status, code = 400, "body.duplicate_key"
    detail = "An object in the body has the same key twice."


class BodyTooLarge(RequestError):
    status, code = 413, "body.too_large"
    detail = "The body is larger than this server takes."


class RequestTimeout(RequestError):
    status, code = 408, "request.timeout"
    detail = "The request did not arrive in time."
    retryable = True


class URITooLong(RequestError):
    status, code = 414, "request.uri_too_long"
    detail = "The path with its query is longer than 8,000 bytes."


class HeadersTooLarge(RequestError):
    status, code = 431, "request.headers_too_large"
    detail = "The headers are more than 128, or larger than 64 KiB."


class UnsupportedMediaType(RequestError):
    status, code = 415, "body.unsupported_media_type"
    detail = "Send the body as `Content-Type: application/json`, without Content-Encoding."


class InvalidField(RequestError):
    """`errors` in `extra` lists {"pointer": JSON Pointer, "detail": what is expected}."""

    status, code = 422, "field.invalid"
    detail = "A field has a value that is not allowed; see `errors`."


class ForbiddenField(RequestError):
    status, code = 422, "field.forbidden"
    detail = "The body has a field that this call does not take; see `errors`."


class NotFound(RequestError):
    status, code = 404, "not_found"
    detail = "There is nothing here that you can see."


class MethodNotAllowed(RequestError):
    status, code = 405, "method_not_allowed"
    detail = "This path does not take that method; see the Allow header."


class NotAcceptable(RequestError):
    status, code = 406, "not_acceptable"
    detail = "None of the types in the Accept header is offered here."


class InvalidIdempotencyKey(RequestError):
    status, code = 400, "idempotency.invalid_key"
    detail = "An Idempotency-Key is 1 to 255 printable ASCII characters."


class IdempotencyMismatch(RequestError):
    status, code = 422, "idempotency.mismatch"
    detail = "This Idempotency-Key was used for another request. Use a new key."


class ConversationBusy(RequestError):
    status, code = 409, "conversation.busy"
    detail = "A run is active in this conversation. Wait for it, or cancel it."
    retryable = True


class RunActive(RequestError):
    status, code = 409, "run.active"
    detail = "The run has not ended. Cancel it first."


class InputDecided(RequestError):
    status, code = 409, "input.decided"
    detail = "This request was answered before; the first answer counts."


class BatchError(HeadraceError):
    """A batch, or one item of it, cannot be taken as it is."""


class BatchTooLarge(BatchError):
    status, code = 413, "batch.too_large"
    detail = "The batch has more items than this server takes at once. Send several, or a batch job."


class BatchPathForbidden(BatchError):
    status, code = 400, "batch.path_forbidden"
    detail = "An item cannot call this path. It takes the plain path of a single call, without query or escapes."


class BatchHeaderForbidden(BatchError):
    status, code = 422, "batch.header_forbidden"
    detail = "An item cannot set this header. Its caller is that of the batch."


class BatchStreamForbidden(BatchError):
    status, code = 422, "batch.stream_forbidden"
    detail = "An item cannot stream by itself. Stream the batch: its Accept header asks for text/event-stream."


class BatchReferenceInvalid(BatchError):
    status, code = 422, "batch.reference_invalid"
    detail = "The item refers to a result that is not there: the JSON Pointer leads nowhere."


class DependencyFailed(BatchError):
    status, code = 424, "batch.dependency_failed"
    detail = "An item that this one depends on has failed."


class BatchTimeout(BatchError):
    status, code, retryable = 504, "batch.timeout", True
    detail = "The batch was at its time limit before this item had ended."


class BatchFileInvalid(BatchError):
    """`errors` in `extra` lists {"line": number, "detail": what is wrong}."""

    status, code = 422, "batch.file_invalid"
    detail = "The file has lines that are no operation; see `errors`. Nothing was started."


class PositionError(HeadraceError):
    """The position a reader wants to go on from cannot be served."""


class InvalidPosition(PositionError):
    status, code = 400, "cursor.invalid"
    detail = "The position is not one this server has given out. Send the `id` of the last event as it came."


class AmbiguousPosition(PositionError):
    status, code = 400, "cursor.ambiguous"
    detail = "The `after` parameter and the Last-Event-ID header differ. Send one of them."


class PositionAhead(PositionError):
    status, code = 409, "cursor.ahead"
    detail = "The position lies after the last event of this log. Start again without a position."


class ForeignPosition(PositionError):
    status, code = 409, "cursor.foreign"
    detail = "The position belongs to another log. Start again without a position."


class PositionGone(PositionError):
    """`first_available` in `extra` is the first position that can still be read after."""

    status, code = 410, "cursor.gone"
    detail = "The events after this position are no longer kept; see `first_available`."


class AuthError(HeadraceError):
    """Who is asking is unknown or not enough."""


class AuthMissing(AuthError):
    status, code = 401, "auth.missing"
    detail = "Send a credential: `Authorization: Bearer <token or API key>`."


class AuthInvalid(AuthError):
    """One body for every fault of a token, so that nothing can be learnt from it."""

    status, code = 401, "auth.invalid"
    detail = "The credential is not valid."


class AuthRevoked(AuthError):
    status, code = 401, "auth.revoked"
    detail = "The credential is no longer valid. Sign in again."


class AuthAmbiguous(AuthError):
    status, code = 400, "auth.ambiguous"
    detail = "The request carries more than one credential. Send one."


class OriginDenied(AuthError):
    status, code = 403, "origin.denied"
    detail = "Pages of this origin may not use this server. Its operator can allow them, or set up credentials."


class LimitError(HeadraceError):
    """The caller uses more than their share."""

    retryable = True


class TooManyRequests(LimitError):
    status, code = 429, "limit.requests"
    detail = "Too many requests in this minute. Wait as the Retry-After header says."


class TooManyStreams(LimitError):
    status, code = 429, "limit.streams"
    detail = "Too many open streams. Close one, or read several runs over one feed or socket."


class BudgetExceeded(LimitError):
    """`budget` in `extra` names which: `run`, `principal` or `conversation`."""

    status, code, retryable = 402, "budget.exceeded", False
    detail = "The budget for this is used up. Its operator can raise it; a budget per day or month comes anew."


class ServiceError(HeadraceError):
    """The server cannot take this now, or not at all."""


class StreamDisabled(ServiceError):
    status, code = 403, "stream.disabled"
    detail = "Streaming is switched off on this server (STREAM_ENABLED). Call without `stream`."


class BatchDisabled(ServiceError):
    status, code = 403, "batch.disabled"
    detail = "Batches are switched off on this server (BATCH_ENABLED). Send single requests."


class Draining(ServiceError):
    status, code = 503, "server.draining"
    detail = "The server is about to restart. Try again in a moment."
    retryable = True


class StorageFull(ServiceError):
    status, code = 503, "storage_full"
    detail = "The server's disk is full. Runs go on when there is space again."
    retryable = True


class StorageFailed(ServiceError):
    status, code = 503, "storage_failed"
    detail = "The server's disk failed. Its operator has to look at it."


class RunError(HeadraceError):
    """Why a run failed that was not the model's doing."""


class Interrupted(RunError):
    status, code = 503, "interrupted"
    detail = "The worker of this run died and the run could not go on. Start it again."
    retryable = True


class RunTimeout(RunError):
    status, code = 504, "limit.total_time"
    detail = "The run took longer than it may."


class RunIdle(RunError):
    status, code = 504, "limit.idle_time"
    detail = "The agent said nothing for longer than it may."
    retryable = True


class TooManySteps(RunError):
    status, code = 500, "limit.max_steps"
    detail = "The agent used all the steps it may take without finishing."


class AgentFailed(RunError):
    status, code = 500, "agent.failed"
    detail = "The agent failed."


class ToolOutcomeUnknown(RunError):
    """The worker died while a tool ran that does not say that it may run twice."""

    status, code = 409, "tool_outcome_unknown"
    detail = "The server stopped while a tool was at work. Check whether it took effect, then ask again."


class AnswerRestarted(RunError):
    """Shown by formats that cannot say that the text so far is void. It never stands in a log."""

    status, code, retryable = 409, "answer.restarted", True
    detail = "The answer was begun anew, which this format cannot show. Read the run from its start as `view=native`."


class Cancelled(RunError):
    """Told where an answer was asked for and the run was cancelled."""

    status, code = 499, "run.cancelled"
    detail = "The run was cancelled."


class ToolError(HeadraceError):
    """A tool did not do what was asked. A tool that raises one may say why in its own words: the model and the caller
    read them."""


class ToolFailed(ToolError):
    status, code = 500, "tool.failed"
    detail = "The tool failed."


class ToolTimeout(ToolError):
    status, code, retryable = 504, "tool.timeout", True
    detail = "The tool took longer than it may."


class ToolArgumentsInvalid(ToolError):
    """`errors` in `extra` lists {"pointer": JSON Pointer into the arguments, "detail": what is expected}."""

    status, code = 422, "tool.arguments_invalid"
    detail = "The arguments do not fit the tool's schema."


class ToolRefused(ToolError):
    status, code = 422, "tool.refused"
    detail = "The tool refused the request."


class ToolNotApproved(ToolError):
    status, code = 403, "tool.not_approved"
    detail = "The call was not approved, so it was not run."


class ToolUnavailable(ToolError):
    status, code, retryable = 502, "tool.unavailable", True
    detail = "What the tool needs cannot be reached."


class SQLDenied(ToolError):
    status, code = 422, "tool.sql_denied"
    detail = "The database allows this tool to read only, and refused the statement."


class URLDenied(ToolError):
    status, code = 422, "tool.url_denied"
    detail = "This address may not be asked from here: only public ones over http and https are."


class ModelError(HeadraceError):
    """The model could not answer. Raised by providers, which map every foreign error to one of these."""

    retryable = True
    elsewhere: ClassVar[bool] = True
    """Whether another model may do better with the same request."""


class ModelBadRequest(ModelError):
    status, code, retryable, elsewhere = 502, "model.bad_request", False, False
    detail = "The model refused the request as malformed."


class ModelAuthFailed(ModelError):
    status, code, retryable = 502, "model.auth", False
    detail = "The model refused the server's key. Its operator has to check the key."


class ModelNotFound(ModelError):
    status, code, retryable = 502, "model.not_found", False
    detail = "The provider does not know the model. The operator has to check its name."


class ModelRateLimited(ModelError):
    status, code = 429, "model.rate_limited"
    detail = "The model is busy with too many requests. Try again later."


class ModelQuotaExceeded(ModelError):
    status, code, retryable = 429, "model.quota_exceeded", False
    detail = "The server's account with the provider is used up. Its operator has to look at it."


class ModelOverloaded(ModelError):
    status, code = 503, "model.overloaded"
    detail = "The model is overloaded. Try again later."


class ModelUnavailable(ModelError):
    status, code = 502, "model.unavailable"
    detail = "The model cannot be reached."


class ModelTimeout(ModelError):
    status, code = 504, "model.timeout"
    detail = "The model did not answer in time."


class ModelCut(ModelError):
    status, code = 502, "model.cut"
    detail = "The model's answer broke off before its end."


class ModelGarbage(ModelError):
    status, code = 502, "model.garbage"
    detail = "The model's answer could not be understood."


class ModelEmpty(ModelError):
    status, code = 502, "model.empty"
    detail = "The model's answer was empty."


class ModelOutputInvalid(ModelError):
    status, code = 502, "model.output_invalid"
    detail = "The model's answer does not fit the schema that was asked for."


class ContextTooLong(ModelError):
    status, code, retryable = 422, "model.context_too_long", False
    detail = "The conversation is too long for the model."


class ContentFiltered(ModelError):
    status, code, retryable, elsewhere = 422, "model.content_filtered", False, False
    detail = "The provider's content filter stopped the answer."


class LogError(HeadraceError):
    """An append or a read that the log refuses."""


class LogClosed(LogError):
    status, code = 409, "log.closed"
    detail = "The run has ended; nothing can be added to its log."


class Fenced(LogError):
    status, code = 409, "log.fenced"
    detail = "Another worker has taken this run over."


class LogCorrupt(LogError):
    status, code = 500, "log_corrupt"
    detail = "The stored events of this run are damaged and are not served."


class ClientError(HeadraceError):
    """What the Python client raises by itself; a server's answer is raised as the class of its `code`."""


class Unreachable(ClientError):
    status, code, retryable = 503, "client.unreachable", True
    detail = "The server cannot be reached. Is it running, and is the URL right?"


class StreamCut(ClientError):
    status, code, retryable = 502, "client.stream_cut", True
    detail = "The stream ended before the run did, and could not be resumed."


class UnexpectedAnswer(ClientError):
    status, code = 502, "client.unexpected_answer"
    detail = "What answers at this URL is not Headrace. Is the URL right, and does a proxy in front let it through?"


class ConfigurationError(HeadraceError):
    """The process is set up wrongly and refuses to start. `message` names the setting and the next step."""

    code = "configuration"
    detail = "The configuration is not usable."


def _tree(cls: type[HeadraceError]) -> list[type[HeadraceError]]:
    return [cls, *(leaf for child in cls.__subclasses__() for leaf in _tree(child))]


BY_CODE: dict[str, type[HeadraceError]] = {cls.code: cls for cls in _tree(HeadraceError) if "code" in vars(cls)}
"""The class of each stable code."""
