"""Whether a run may start: its first slice is reserved before it exists."""

from collections.abc import Awaitable, Callable

from headrace.errors import BudgetExceeded
from headrace.identity import Owner
from headrace.ports import Created, Run
from headrace.usage.book import Account
from headrace.usage.ledger import Ledger


class Admission:
    """`is_open` says of a run's id whether that run has yet to end; an unknown run is not open."""

    def __init__(self, ledger: Ledger, is_open: Callable[[str], Awaitable[bool]]) -> None:
        self._ledger = ledger
        self._is_open = is_open
        self._coming: set[str] = set()
        """Runs that have reserved and are not in the log yet."""

    async def admit(self, run: Run, create: Callable[[], Awaitable[Created]]) -> Created:
        """Reserve for the run and `create` it. What was reserved is given back where that fails, or another run is
        given for an idempotency key. Raises `BudgetExceeded`."""
        self._coming.add(run.id)
        try:
            await self._reserve(Account.of(run))
            try:
                created = await create()
            except Exception:  # a cancel is not among these: the run may come to be nevertheless
                self._ledger.end(run.id)
                raise
            if not created.new and (created.head.run.id != run.id or created.head.closed):
                self._ledger.end(run.id)
        finally:
            self._coming.discard(run.id)
        return created

    def end(self, run_id: str) -> None:
        """What an ended run still holds is given back. Any number of times."""
        self._ledger.end(run_id)

    async def reconcile(self, owner: Owner | None = None) -> None:
        """Give back what runs hold that have ended, those of one owner or all."""
        await self._ledger.reconcile(self._is_coming_or_open, owner)

    async def _reserve(self, account: Account) -> None:
        try:
            await self._ledger.reserve(account)
        except BudgetExceeded:
            await self.reconcile(account.owner)
            await self._ledger.reserve(account)

    async def _is_coming_or_open(self, run_id: str) -> bool:
        return run_id in self._coming or await self._is_open(run_id)
