"""How many bodies are taken in together, and how much space they take: others wait, or come back later."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..adapters.settings import MEBIBYTE_BYTES
from ..domain.kernel import Rejection

TEMPORARY_BYTES_MAX = 2048 * MEBIBYTE_BYTES  # one of the largest films, or forty of the largest pictures
AT_ONCE_MAX = 32
WAITING_MAX = 128
WAIT_S_MAX = 10.0
RETRY_AFTER_S = 5


class TooManyUploads(Rejection):
    """Enough bodies are being taken in, and enough others wait."""

    code = "too_many_uploads"


class Turns:
    """Places for bodies, first come, first served, each with the bytes that it takes on disk, or in memory.

    Args:
        bytes_max: of all that hold a place; one that is larger takes all of it, alone.
        at_once_max: places.
        waiting_max: who waits for one, at most `wait_s_max` seconds.
    """

    def __init__(
        self,
        *,
        bytes_max: int = TEMPORARY_BYTES_MAX,
        at_once_max: int = AT_ONCE_MAX,
        waiting_max: int = WAITING_MAX,
        wait_s_max: float = WAIT_S_MAX,
    ) -> None:
        self._bytes_free = self._bytes_max = bytes_max
        self._places_free = at_once_max
        self._waiting_max = waiting_max
        self._wait_s_max = wait_s_max
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @asynccontextmanager
    async def taken(self, size_bytes: int) -> AsyncIterator[None]:
        """A place for so many bytes.

        Raises:
            TooManyUploads: none, and too many wait already; or none came free in time.
        """
        size_bytes = min(size_bytes, self._bytes_max)
        if not self._waiting and self._fits(size_bytes):
            self._take(size_bytes)
        else:
            await self._turn(size_bytes)
        try:
            yield
        finally:
            self._give(size_bytes)

    async def _turn(self, size_bytes: int) -> None:
        if len(self._waiting) >= self._waiting_max:
            raise TooManyUploads(f"{self._waiting_max} wait already", retry_after_s=RETRY_AFTER_S)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size_bytes, turn))
        try:
            async with asyncio.timeout(self._wait_s_max):
                await asyncio.shield(turn)
        except BaseException as error:
            if turn.done():
                self._give(size_bytes)  # it came, and nobody was there any more to take it
            else:
                self._waiting.remove((size_bytes, turn))
                self._wake()  # whoever stood behind may need less
            if isinstance(error, TimeoutError):
                raise TooManyUploads(f"no place within {self._wait_s_max:g} s", retry_after_s=RETRY_AFTER_S) from error
            raise

    def _fits(self, size_bytes: int) -> bool:
        return self._places_free > 0 and size_bytes <= self._bytes_free

    def _take(self, size_bytes: int) -> None:
        self._places_free -= 1
        self._bytes_free -= size_bytes

    def _give(self, size_bytes: int) -> None:
        self._places_free += 1
        self._bytes_free += size_bytes
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size_bytes, turn = self._waiting.popleft()
            self._take(size_bytes)
            turn.set_result(None)
