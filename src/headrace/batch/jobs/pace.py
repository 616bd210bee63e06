"""So many a second."""

import asyncio


class Pace:
    """`per_second` starts a second, evenly; a start that comes late does not let later ones come in a heap. `None`: as
    many as there are."""

    def __init__(self, per_second: float | None) -> None:
        self._gap = 1 / per_second if per_second is not None else 0.0
        self._due = 0.0

    async def next(self) -> None:
        if not self._gap:
            return
        now = asyncio.get_running_loop().time()
        if (wait := self._due - now) > 0:
            await asyncio.sleep(wait)
        self._due = max(self._due, now) + self._gap
