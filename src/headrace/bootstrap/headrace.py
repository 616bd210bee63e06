"""One process of Headrace: every part made from the settings and wired to the others."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from ipaddress import ip_network

import structlog
from fastapi import FastAPI

from headrace.agents import tool_call
from headrace.agents.chat import ChatAgent
from headrace.agents.generator import TextGenerator, generator_agent
from headrace.agents.tool_call import ToolCallAgent
from headrace.batch import agent as batch
from headrace.batch.agent import BatchAgent
from headrace.batch.jobs import agent as job
from headrace.batch.jobs import notice
from headrace.batch.jobs.agent import JobAgent
from headrace.batch.jobs.file import JobFiles
from headrace.batch.jobs.notice import NoticeAgent
from headrace.batch.jobs.service import Jobs
from headrace.batch.jobs.slots import Slots
from headrace.bootstrap.auth import auth_config
from headrace.bootstrap.models import choose_model, names_of
from headrace.bootstrap.tools import tool_sources
from headrace.bootstrap.webhook_secret import WebhookSecret
from headrace.egress import Egress
from headrace.engines.memory import MemoryEngine
from headrace.engines.sqlite import SqliteEngine
from headrace.errors import ConfigurationError, NotFound
from headrace.execution import RunLimits
from headrace.identity import is_printable_name
from headrace.limits import Limiter
from headrace.models.budgeted import BudgetedModel
from headrace.models.cache import ResponseCache
from headrace.ports import Agent, AgentFactory, Engine, Model, Run, Tool, WireProtocol
from headrace.protocols.agent_chat import AgentChat
from headrace.protocols.batch import Batch
from headrace.protocols.batch_job import BatchJob
from headrace.protocols.native import Native
from headrace.runs import Runs
from headrace.server.app import create_app
from headrace.server.auth import Authenticator, is_loopback
from headrace.server.auth.peer import Network
from headrace.server.in_process import InProcess
from headrace.server.open_streams import OpenStreams
from headrace.server.services import BatchOptions, Services
from headrace.settings import Settings, load_settings
from headrace.telemetry import Telemetry
from headrace.toolbox import Toolbox
from headrace.usage.account import RunAccount
from headrace.usage.admission import Admission
from headrace.usage.budgets import Budgets
from headrace.usage.ledger import Ledger
from headrace.usage.prices import Prices
from headrace.webhook import Webhooks, secret_text
from headrace.worker import Worker

logger = structlog.get_logger("headrace")

_OWN_NAMES = frozenset({tool_call.NAME, batch.NAME, job.NAME, notice.NAME})
"""Of agents."""
_COORDINATORS = frozenset({batch.NAME, job.NAME, notice.NAME})
"""Of these, those that wait for other runs."""
LEDGER_FILE = "budgets.db"
JOBS_FOLDER = "batches"
_TRIM_SECONDS = 60.0
_NOTICES = 20
"""Attempts to tell a webhook, which take up to an hour."""
_GRACE_SECONDS = 3.0
"""For runs that are about to end when the process is told to stop."""


class Headrace:
    """One process of Headrace: an engine, a worker, and the door, wired and not yet started.

    `app` is an ASGI app that starts and stops everything by its lifespan. Mounted into another app, whose server
    does not run the lifespan of a mounted one, enter `running()` in the other app's lifespan.

    `agents` are more agents by name: factories, or plain async generator functions of strings wrapped by
    `headrace.agent`. An agent named `default` takes the place of the chat agent. `protocols` are more views of a run,
    for `?view=`. `tools` are more tools, which the chat agent offers to its model unless the settings say otherwise.
    `engine` keeps the logs instead of the one that the settings name.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        agents: Mapping[str, AgentFactory] | None = None,
        protocols: Sequence[WireProtocol] = (),
        tools: Sequence[Tool] = (),
        engine: Engine | None = None,
    ) -> None:
        self.settings = settings or load_settings()
        self.telemetry = Telemetry()
        self.engine = engine or _engine(self.settings, self.telemetry)
        chunk_size = self.settings.stream_chunk_size
        self._protocols: list[WireProtocol] = [
            Native(),
            AgentChat(chunk_size),
            Batch(chunk_size),
            BatchJob(),
            *protocols,
        ]
        self.tools = Toolbox(tools)
        """Those of the settings are added at the start."""
        self._own_tools = tuple(tools)
        self._chat_tools = self.tools.only([tool.name for tool in tools])
        self.model: Model | None = None
        """Chosen at the start, where the chat agent is used."""
        self._agents: dict[str, AgentFactory] = dict(agents or {})
        _check_names(self._agents)
        self.prices = Prices.load(self.settings.prices)
        self._ledger = _ledger(self.settings)
        self._admission = Admission(self._ledger, self._is_open) if self._ledger is not None else None
        self._cache: ResponseCache | None = None
        self._needs_model = "default" not in self._agents
        if self._needs_model:
            self._agents["default"] = self._chat
        own_agents: dict[str, AgentFactory] = {
            tool_call.NAME: self._tool_call,
            batch.NAME: self._batch,
            job.NAME: self._job,
            notice.NAME: self._notice,
        }
        self.worker = Worker(
            self.engine,
            self.engine,
            {**self._agents, **own_agents},
            telemetry=self.telemetry,
            max_runs=self.settings.max_runs,
            limits=RunLimits(total=self.settings.stream_timeout, idle=self.settings.idle_timeout),
            coordinators=_COORDINATORS,
            on_end=self._admission.end if self._admission is not None else None,
        )
        self.authenticator = Authenticator(auth_config(self.settings))
        self.open_streams = OpenStreams(self.authenticator.still_valid)
        self.runs = Runs(
            self.engine,
            self._agents,
            self._admission,
            own_agents=own_agents,
            coordinators=_COORDINATORS,
            on_deleted=self._forget,
        )
        self.egress = Egress(allow=_networks(self.settings.egress_allow, "HEADRACE_EGRESS_ALLOW"))
        self._webhooks = Webhooks(self.egress, attempts=_NOTICES)
        self._webhook_secret = WebhookSecret(self.settings)
        # Each engine has a folder of its own: files whose runs it does not know are deleted at its start.
        folder = f"{JOBS_FOLDER}-memory" if self.settings.engine == "memory" else JOBS_FOLDER
        self._job_files = JobFiles(self.settings.data / folder)
        # Half of all places at most: people who chat do not wait for jobs.
        self._job_slots = Slots(min(self.settings.job_slots, max(1, self.settings.max_runs // 2)))
        self.jobs = Jobs(
            self.runs,
            self._job_files,
            self.egress,
            concurrency=self.settings.job_concurrency,
            secret_of=lambda owner: secret_text(self._webhook_secret.of(owner)),
        )
        services = self._services()
        self.app = create_app(services, version=version("headrace"), lifespan=self._lifespan)
        self._in_process = InProcess(self.app, limits=services.limits, still_valid=self.authenticator.still_valid)
        self._running = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Headrace"]:
        """Everything started on entry, stopped in order on exit; runs that have not ended go on at the next start."""
        async with AsyncExitStack() as stack:
            await self.engine.start()
            stack.push_async_callback(self.engine.close)
            if self._ledger is not None and self._admission is not None:
                await self._ledger.start()
                stack.push_async_callback(self._ledger.close)
                await self._admission.reconcile()
            await self._job_files.delete_orphans(self._is_known)
            await self.egress.start()
            stack.push_async_callback(self.egress.close)
            await self._open_tools(stack)
            if self._needs_model:
                await self._start_model(stack)
            self.worker.start()
            stack.push_async_callback(self.worker.stop)
            for chore in (self.open_streams.watch_credentials(), self._trim()):
                task = asyncio.create_task(chore)
                stack.push_async_callback(_stop, task)
            self._running = True
            stack.callback(self._not_running)
            yield self

    async def drain(self) -> None:
        """The process is about to stop: take no more work, let short answers end, then end every stream in order."""
        self.open_streams.draining = True
        await self.worker.finish(_GRACE_SECONDS)
        self.open_streams.drain()

    def _not_running(self) -> None:
        self._running = False

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        async with self.running():
            yield

    async def _start_model(self, stack: AsyncExitStack) -> None:
        settings = self.settings
        self.model = model = await choose_model(settings, self.telemetry)
        if self._ledger is not None:
            self._ledger.budgets.check_prices(self.prices, names_of(model))
        if settings.cache != "off":
            self._cache = ResponseCache(
                model, scope=settings.cache, max_bytes=settings.cache_bytes, seconds=settings.cache_seconds
            )
        started = self._cache or model
        await started.start()
        stack.push_async_callback(started.close)

    async def _open_tools(self, stack: AsyncExitStack) -> None:
        """A tool that the program has handed in takes the place of one of that name."""
        own = {tool.name for tool in self._own_tools}
        for source in tool_sources(self.settings, self.egress):
            for tool in await stack.enter_async_context(source()):
                if tool.name not in own:
                    self.tools.add(tool)
                    stack.callback(self.tools.remove, tool.name)
        if (names := self.settings.chat_tools) is not None:
            self._chat_tools = self.tools.only(names)

    def _tool_call(self, run: Run) -> Agent:
        return ToolCallAgent(self.tools)

    def _batch(self, run: Run) -> Agent:
        return BatchAgent(self.runs, self._in_process, timeout=self.settings.batch_timeout)

    def _job(self, run: Run) -> Agent:
        return JobAgent(self.runs, self._job_files, self._job_slots, may_go_on=self.authenticator.still_valid)

    def _notice(self, run: Run) -> Agent:
        secret = self._webhook_secret.of(run.owner)
        return NoticeAgent(self.runs, self._webhooks, self.jobs.describe, secret=secret)

    def _chat(self, run: Run) -> Agent:
        """What stands around the model is put there for each run: the owner's part of the cache, the run's budget."""
        assert self.model is not None
        account = RunAccount(self._ledger, run, self.prices) if self._ledger is not None else None

        def paid(model: Model) -> Model:
            return model if account is None else BudgetedModel(model, account)

        return ChatAgent(
            paid(self.model) if self._cache is None else self._cache.for_owner(run.owner, paid),
            system_prompt=self.settings.system_prompt,
            tools=self._chat_tools,
            cost=self.prices.dollars,
            on_lost_call=account.recover if account is not None else None,
        )

    async def _forget(self, run: Run) -> None:
        """What is kept of a run beside its log."""
        if run.agent == job.NAME:
            await self._job_files.delete(run.id)

    async def _is_known(self, run_id: str) -> bool:
        try:
            await self.engine.head(run_id)
        except NotFound:
            return False
        return True

    async def _is_open(self, run_id: str) -> bool:
        try:
            return not (await self.engine.head(run_id)).closed
        except NotFound:
            return False

    def _services(self) -> Services:
        settings = self.settings
        return Services(
            runs=self.runs,
            protocols={protocol.name: protocol for protocol in self._protocols},
            authenticator=self.authenticator,
            tickets=self.authenticator.tickets,
            limits=Limiter(),
            open_streams=self.open_streams,
            telemetry=self.telemetry,
            tools=self.tools,
            jobs=self.jobs,
            ready=self._ready,
            models=lambda: (self.model.name,) if self.model is not None else (),
            stream_enabled=settings.stream_enabled,
            batch=BatchOptions(
                enabled=settings.batch_enabled,
                max_size=settings.batch_max_size,
                max_lines=settings.job_max_items,
                max_bytes=settings.job_max_bytes,
            ),
            max_body_bytes=settings.max_body_bytes,
            allowed_origins=settings.allowed_origins,
            metrics_public=is_loopback(settings.host),
            trusted_proxies=_networks(settings.trusted_proxies, "HEADRACE_TRUSTED_PROXIES"),
        )

    async def _ready(self) -> bool:
        return self._running and self.engine.writable

    async def _trim(self) -> None:
        """Keep to the retention settings."""
        days, max_bytes = self.settings.retention_days, self.settings.retention_bytes
        if days is None and max_bytes is None:
            return
        while True:
            try:
                await self.engine.trim(older_than=None if days is None else days * 86_400, max_bytes=max_bytes)
            except Exception:  # one failure must not end what keeps the disk from filling up
                logger.exception("cannot trim")
            await asyncio.sleep(_TRIM_SECONDS)


def agent(generator: TextGenerator) -> AgentFactory:
    """An agent from an async generator function that takes a `RunContext` and yields strings. A decorator."""
    return generator_agent(generator)


def _ledger(settings: Settings) -> Ledger | None:
    if settings.budgets is None:
        return None
    return Ledger(None if settings.engine == "memory" else settings.data / LEDGER_FILE, Budgets.parse(settings.budgets))


def _engine(settings: Settings, telemetry: Telemetry) -> Engine:
    if settings.engine == "memory":
        return MemoryEngine()
    return SqliteEngine(settings.data / "log.db", on_commit=telemetry.committed)


def _check_names(agents: Collection[str]) -> None:
    """Requests name agents, so their names have to be ones that a request can bring."""
    for name in agents:
        if name in _OWN_NAMES:
            raise ConfigurationError(f"The server has an agent {name!r} of its own: name yours otherwise.")
        if not is_printable_name(name):
            raise ConfigurationError(f"The name of an agent is 1 to 128 printable ASCII characters, not {name!r:.200}.")


def _networks(texts: Sequence[str], variable: str) -> tuple[Network, ...]:
    try:
        return tuple(ip_network(text) for text in texts)
    except ValueError as error:
        raise ConfigurationError(f"{variable}: {error}. Give networks such as 10.0.0.0/8.") from error


async def _stop(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task])
