"""How often somebody may ask: exact sliding windows in Valkey, and a smaller local one where Valkey does not answer.

A window keeps the time of each request that it took (sliding_window.lua), and so no window of its length, wherever it
begins, ever holds more than the limit. The usual GCRA keeps one number instead of at most `limit`, and takes twice the
limit within a window that begins after a pause; limits here are at most some hundreds.
"""

import asyncio
import hashlib
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import redis.asyncio as redis
import structlog
from msgspec import Struct
from redis.exceptions import NoScriptError

from ..domain.kernel import Rejection
from .valkey import open_valkey

WINDOW_S = 60
BUDGET_S = 0.05  # of one round trip, which takes 0.3 ms where the event loop is not busy
BREAK_S = 1.0  # after one without an answer nobody asks for so long
RETRY_AFTER_S = 1
CONNECTIONS_MAX = 2  # of this alone, so that a burst of hints does not use up the budget
WAITING_MAX = 1_000  # questions of one round trip
LOCAL_KEYS_MAX = 10_000  # beyond it the bucket that was asked about longest ago is forgotten

SCRIPT = Path(__file__).with_name("sliding_window.lua").read_text()
SCRIPT_SHA1 = hashlib.sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()

Command = tuple[Any, ...]

log = structlog.get_logger(__name__)


class LimitsUnavailable(Rejection):
    """Nobody can say how often this was tried, and guessing would let it be tried without end."""

    code = "limits_unavailable"


class Bucket(Struct, frozen=True):
    """One policy for one key.

    Attributes:
        key: who is counted, and for what.
        limit: requests within any `window_s`.
    """

    key: str
    limit: int
    window_s: int = WINDOW_S


class Verdict(Struct, frozen=True):
    """What one bucket says.

    Attributes:
        allowed: every bucket of the same question had room.
        remaining: requests that it would take now.
        reset_s: whole seconds, rounded up, until it takes one more than that.
        retry_after_s: the same where it had no room; else 0.
    """

    allowed: bool
    remaining: int
    reset_s: int
    retry_after_s: int = 0


class Limiter:
    """Asks Valkey: one round trip at a time takes every question that has come by then. A Valkey that is away costs
    whoever asks twice the budget, once in BREAK_S.

    Args:
        processes: how many share the limits; without Valkey each gives its part of them.
        budget_s: of one round trip.
    """

    def __init__(self, client: "redis.Redis", *, processes: int = 1, budget_s: float = BUDGET_S) -> None:
        self._client = client
        self._budget_s = budget_s
        self._local = LocalWindows(processes)
        self._waiting: list[tuple[Command, asyncio.Future[Any]]] = []
        self._sending: asyncio.Task[None] | None = None
        self._asks_at = 0.0  # 0: Valkey answers

    async def take(self, buckets: Sequence[Bucket], *, fails_closed: bool = False) -> list[Verdict]:
        """Count one request in every bucket, if all of them have room; else in none. A verdict for each.

        With `fails_closed` it refuses without Valkey, instead of counting here.

        Raises:
            LimitsUnavailable: that, and Valkey does not answer.
        """
        keys = [one.key for one in buckets]
        arguments = [number for one in buckets for number in (one.limit, one.window_s * 1_000_000)]
        try:
            answer = await self._asked(("EVALSHA", SCRIPT_SHA1, len(keys), *keys, *arguments))
        except LimitsUnavailable:
            if fails_closed:
                raise
            return self._local.take(buckets, time.monotonic())
        return [
            _verdict(bool(answer[0]), remaining, reset_us / 1_000_000)
            for remaining, reset_us in zip(answer[1::2], answer[2::2], strict=True)
        ]

    async def remember(self, key: str, seconds: int) -> None:
        """Keep a mark for so long, or until Valkey is restarted; where it does not answer, not at all."""
        with suppress(LimitsUnavailable):
            await self._asked(("SET", key, "", "EX", seconds))

    async def remembers(self, key: str) -> bool:
        """Raises: LimitsUnavailable: Valkey does not answer."""
        return bool(await self._asked(("EXISTS", key)))

    async def close(self) -> None:
        """Whoever still waits is answered."""
        if self._sending is not None:
            await self._sending

    async def _asked(self, command: Command) -> Any:
        """Valkey's answer.

        Raises:
            LimitsUnavailable: there is none within the budget, or there was none just now.
        """
        if time.monotonic() < self._asks_at or len(self._waiting) >= WAITING_MAX:
            raise LimitsUnavailable("try again in a moment", retry_after_s=RETRY_AFTER_S)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, future))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())
        return await future

    async def _send(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting, []
            try:
                answers = await self._in_budget([command for command, _ in taken])
            except (redis.RedisError, OSError, TimeoutError) as error:
                if not self._asks_at:
                    log.warning("limits_local", error=repr(error))
                self._asks_at = time.monotonic() + BREAK_S
                taken, self._waiting = taken + self._waiting, []
                answers = [error] * len(taken)
            else:
                if self._asks_at:
                    log.info("limits_shared")
                self._asks_at = 0.0
            for (_, future), answer in zip(taken, answers, strict=True):
                _settle(future, answer)

    async def _in_budget(self, commands: Sequence[Command]) -> list[Any]:
        """
        Raises:
            TimeoutError: twice the budget is over. An event loop that was busy itself finds one of them over, with the
                answer there and not looked at yet, which says nothing of Valkey.
        """
        exchange = asyncio.create_task(self._exchange(commands))
        for _ in range(2):
            await asyncio.wait({exchange}, timeout=self._budget_s)
            if exchange.done():
                return exchange.result()
        exchange.cancel()
        with suppress(asyncio.CancelledError, redis.RedisError, OSError):
            await exchange
        raise TimeoutError

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        answers = await self._pipelined(commands)
        if any(isinstance(one, NoScriptError) for one in answers):  # new, or restarted: nothing of it was counted
            await self._client.script_load(SCRIPT)
            again = [n for n, one in enumerate(answers) if isinstance(one, NoScriptError)]
            for n, answer in zip(again, await self._pipelined([commands[n] for n in again]), strict=True):
                answers[n] = answer
        return answers

    async def _pipelined(self, commands: Sequence[Command]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers


def _settle(future: asyncio.Future[Any], answer: Any) -> None:
    if future.done():  # Its request was cut off.
        return
    if isinstance(answer, Exception):
        refusal = LimitsUnavailable("try again in a moment", retry_after_s=RETRY_AFTER_S)
        refusal.__cause__ = answer
        future.set_exception(refusal)
    else:
        future.set_result(answer)


class LocalWindows:
    """The same windows in this process's memory, for its part of the limits."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._taken: OrderedDict[str, deque[float]] = OrderedDict()

    def take(self, buckets: Sequence[Bucket], now: float) -> list[Verdict]:
        """As Limiter.take(). `now` is monotonic, in seconds."""
        limits = [max(one.limit // self._processes, 1) for one in buckets]
        windows = [self._window(one, now) for one in buckets]
        allowed = all(len(taken) < limit for taken, limit in zip(windows, limits, strict=True))
        if allowed:
            for taken in windows:
                taken.append(now)
        return [
            _verdict(allowed, max(limit - len(taken), 0), (taken[0] if taken else now) + one.window_s - now)
            for one, taken, limit in zip(buckets, windows, limits, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._taken)

    def _window(self, bucket: Bucket, now: float) -> deque[float]:
        taken = self._taken.setdefault(bucket.key, deque())
        self._taken.move_to_end(bucket.key)
        if len(self._taken) > LOCAL_KEYS_MAX:
            self._taken.popitem(last=False)
        while taken and taken[0] <= now - bucket.window_s:
            taken.popleft()
        return taken


def _verdict(allowed: bool, remaining: int, reset_s: float) -> Verdict:
    whole_s = max(math.ceil(reset_s), 1)
    return Verdict(allowed, remaining, whole_s, 0 if allowed or remaining else whole_s)


@asynccontextmanager
async def open_limiter(url: str, *, processes: int = 1) -> AsyncIterator[Limiter]:
    """A limiter with connections of its own; nothing is contacted yet."""
    async with open_valkey(url, connections_max=CONNECTIONS_MAX) as client:
        limiter = Limiter(client, processes=processes)
        yield limiter
        await limiter.close()
