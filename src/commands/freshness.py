"""Whether what a cache holds is still the newest: asked of the log for every request, in one query for all that wait.

A question is answered by a query that began after it was asked; so nobody is let in on what ended before he knocked.
"""

import asyncio
from uuid import UUID

from ..adapters.event_store.reader import Reader

QUESTIONS_MAX = 1_000  # in one query

_Question = tuple[UUID, int]


class Freshness:
    """One per process."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._waiting: dict[_Question, asyncio.Future[bool]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def moved(self, stream_id: UUID, version: int) -> bool:
        """Whether the stream is past `version`.

        Raises:
            psycopg.OperationalError: the database does not answer.
        """
        answer = self._waiting.get((stream_id, version))
        if answer is None:
            answer = self._waiting[stream_id, version] = asyncio.get_running_loop().create_future()
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(answer)  # others wait for the same

    async def _ask(self) -> None:
        while self._waiting:
            asked = dict(list(self._waiting.items())[:QUESTIONS_MAX])
            for question in asked:
                del self._waiting[question]
            try:
                moved = await self._reader.moved(list(asked))
            except BaseException as error:
                for answer in asked.values():
                    answer.set_exception(error if isinstance(error, Exception) else ConnectionError("asking ended"))
                    answer.exception()  # whoever asked may be gone
                if not isinstance(error, Exception):
                    raise
                continue
            for (stream_id, _), answer in asked.items():
                answer.set_result(stream_id in moved)

    async def close(self) -> None:
        """Wait for the last answers."""
        if self._asking is not None:
            await asyncio.wait({self._asking})
