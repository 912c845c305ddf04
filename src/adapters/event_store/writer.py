"""Group commit: whatever is queued goes into the log as one autocommit statement, one batch in flight, one gathering.

BEGIN, call and COMMIT as three messages were tried: a writer stopped between them blocked every other one. As one
statement the server finishes it alone.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime
from uuid import UUID

import msgspec
import psycopg
import structlog
from msgspec import Struct

from ...domain.kernel import Rejection
from .. import metrics, postgres
from . import wire
from .channel import Channel, Row
from .wire import Append, Rendered

BATCH_EVENTS_MAX = 512
BATCH_BYTES_MAX = 4 * 1024 * 1024
HALVED_FROM_COMMANDS = 48
QUEUE_COMMANDS_MAX = 10_000
QUEUE_BYTES_MAX = 64 * 1024 * 1024
QUEUE_AGE_MAX_S = 5.0
RESEND_MAX_S = 60.0
FULL_RESEND_MAX_S = 5.0  # a full disk is not over in a moment, and whoever waits had better know
RESEND_PAUSE_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
CLOSING_RESEND_MAX_S = 2.0
STATEMENT_TIMEOUT_MS = 30_000
CALL_TIMEOUT_S = 40.0  # longer than the server's own; past it the connection is held for lost
EPOCH_MOVED = "SL001"
READ_ONLY = "25006"  # a standby that was promoted too late, or not yet
DEAD_WRITER_EXIT = 70  # EX_SOFTWARE

log = structlog.get_logger(__name__)


class Appended(Struct, frozen=True):
    """Durable. `position` is that of the last event, or of the log's head where the command had none."""

    position: int
    recorded_at: datetime
    result: bytes | None = None


class Repeat(Struct, frozen=True):
    """The command id was appended before, with this outcome; nothing happened now."""

    position: int
    recorded_at: datetime
    result: bytes | None = None


class Stale(Struct, frozen=True):
    """An expectation does not hold: read the streams' tails and decide again."""


class Blocked(Struct, frozen=True):
    """The counter `key` would pass its limit."""

    key: str


Outcome = Appended | Repeat | Stale | Blocked


class StoreBusy(Rejection):
    """Refused before it was sent: the queue is full by commands, bytes or age. Nothing happened; come back."""

    code = "queue_full"


class StoreUnavailable(Rejection):
    """The database did not answer for RESEND_MAX_S; whether the command was appended is not known.

    Sending it again with the same command id finds out.
    """

    code = "store_unavailable"


class CommandRefused(Rejection):
    """The database refuses this one command, alone as much as among neighbours."""

    code = "not_storable"


class _Queued(Struct):
    rendered: Rendered
    future: "asyncio.Future[Outcome]"
    since: float
    epoch: UUID | None


class _EpochMoved(Exception):
    """What the batch was decided on belongs to another epoch of the log."""


def exit_loudly(error: BaseException) -> None:
    """A process whose writer is dead would accept commands that never end: it goes instead, and is started again."""
    log.critical("writer_died", error=repr(error))
    os._exit(DEAD_WRITER_EXIT)


class Writer:
    """The one appender of a process.

    Args:
        dsn: where the log is.
        on_append: told the last position after each batch; a hint for readers.
        on_epoch: told the epoch at every (re)connection; caches of another one are worthless.
        on_death: what to do when the writer's task ends with an error.
    """

    def __init__(
        self,
        dsn: str,
        *,
        on_append: Callable[[int], None] = lambda _: None,
        on_epoch: Callable[[UUID], None] = lambda _: None,
        on_death: Callable[[BaseException], None] = exit_loudly,
        prepare: bool = True,
    ) -> None:
        self._dsn = dsn
        self._on_append = on_append
        self._on_epoch = on_epoch
        self._on_death = on_death
        self._prepare = prepare
        self._queue: deque[_Queued] = deque()
        self._queue_bytes = 0
        self._answered = 0  # commands of the batch before
        self._wake = asyncio.Event()
        self._channel: Channel | None = None
        self._epoch: UUID | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._failing = ""

    async def start(self) -> None:
        """Connect and begin.

        Raises:
            psycopg.OperationalError: the database does not answer.
        """
        await self._connect()
        self._task = asyncio.create_task(self._run(), name="event-store-writer")
        self._task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Append what is queued, then stop; a database that does not answer is not waited for."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait({self._task})
        await self._disconnect()

    @property
    def epoch(self) -> UUID | None:
        """Of the log that this writer is connected to; take it before the first read that a decision rests on."""
        return self._epoch

    @property
    def failing(self) -> str:
        """Why the last call did not append, until one does; empty while all is well."""
        return self._failing

    def saw_epoch(self, epoch: UUID) -> None:
        """A read found the log at this epoch: after a restore, reads may come long before the next append."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._on_epoch(epoch)

    async def append(self, append: Append, *, epoch: UUID | None = None) -> Outcome:
        """Queue one command and wait until its fate is durable.

        Args:
            append: the command, decided.
            epoch: of the log that it was decided on, today's if not given; Stale if the log has another by now.

        Raises:
            NotStorable: its text or numbers cannot be stored; it was not queued.
            StoreBusy: the queue is full; it was not queued.
            StoreUnavailable: the database is gone and the outcome unknown.
            CommandRefused: the database refuses it.
        """
        rendered = wire.render(append)
        self._admit(rendered)
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._queue.append(_Queued(rendered, future, time.monotonic(), epoch or self._epoch))
        self._queue_bytes += rendered.size_bytes
        self._wake.set()
        return await future

    def _admit(self, rendered: Rendered) -> None:
        if self._closing:
            raise StoreBusy("the process is stopping")
        if len(self._queue) >= QUEUE_COMMANDS_MAX:
            raise StoreBusy(f"{QUEUE_COMMANDS_MAX} commands are waiting")
        if self._queue_bytes + rendered.size_bytes > QUEUE_BYTES_MAX:
            raise StoreBusy(f"{QUEUE_BYTES_MAX} bytes are waiting")
        if self._queue and time.monotonic() - self._queue[0].since > QUEUE_AGE_MAX_S:
            raise StoreBusy(f"the oldest command has waited for more than {QUEUE_AGE_MAX_S} s")

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_death(error)

    async def _run(self) -> None:
        while True:
            while not self._queue:
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()
                self._answered = 0  # whoever was to come back has
            batch = self._gather()
            if batch:
                await self._settle(batch)
            self._answered = len(batch)

    def _gather(self) -> list[_Queued]:
        """The next batch: in order, up to the caps, no command beside one whose streams it touches.

        Who waits for a neighbour stays at the head of the queue, so that a hot stream is served in turn.
        """
        batch: list[_Queued] = []
        held: list[_Queued] = []
        events = size_bytes = 0
        written: set[bytes] = set()
        commands: set[UUID] = set()
        # Who was just answered comes back while this batch is under way. So that they meet in two groups that take
        # turns with the server, not in one that waits with it, a batch is half of all of them; of few, a second call
        # costs more than it gains.
        around = len(self._queue) + self._answered
        share = len(self._queue) if around < HALVED_FROM_COMMANDS else (around + 1) // 2
        while self._queue and len(batch) < share:
            one = self._queue[0]
            rendered = one.rendered
            if batch and (
                events + rendered.counts[2] > BATCH_EVENTS_MAX or size_bytes + rendered.size_bytes > BATCH_BYTES_MAX
            ):
                break
            self._queue.popleft()
            if one.future.done():  # its waiter was cancelled before it was sent
                self._queue_bytes -= rendered.size_bytes
                continue
            if rendered.command_id in commands or not written.isdisjoint(rendered.touches):
                written |= rendered.writes
                held.append(one)
                continue
            written |= rendered.writes
            commands.add(rendered.command_id)
            batch.append(one)
            events += max(rendered.counts[2], 1)
            size_bytes += rendered.size_bytes
        self._queue.extendleft(reversed(held))
        self._queue_bytes -= size_bytes
        return batch

    async def _settle(self, batch: list[_Queued]) -> None:
        """Give every command of the batch its outcome. An SQL error halves it until the guilty one stands alone."""
        try:
            rows = await self._send(batch)
        except _EpochMoved:
            # Versions of a restored log may be the same and mean something else: every decision is made again.
            for one in batch:
                if not one.future.done():
                    one.future.set_result(Stale())
            return
        except StoreUnavailable as error:
            for one in batch:
                if not one.future.done():
                    one.future.set_exception(error)
            return
        except psycopg.Error as error:
            if len(batch) == 1:
                log.warning("command_refused", command_id=str(batch[0].rendered.command_id), error=_primary(error))
                if not batch[0].future.done():
                    batch[0].future.set_exception(CommandRefused(_primary(error)))
                return
            middle = len(batch) // 2
            await self._settle(batch[:middle])
            await self._settle(batch[middle:])
            return
        self._resolve(batch, rows)

    def _resolve(self, batch: list[_Queued], rows: list[Row]) -> None:
        others = {n: (outcome, position, result, at) for n, outcome, position, result, at in rows}
        _, position, _, recorded_at = others.pop(0)
        before = position
        for n, one in enumerate(batch, 1):
            outcome: Outcome
            if n not in others:
                position += one.rendered.counts[2]
                outcome = Appended(position, recorded_at)
            else:
                outcome = _other(*others[n])
            if not one.future.done():
                one.future.set_result(outcome)
        metrics.APPEND_BATCH_EVENTS.observe(position - before)
        metrics.LOG_POSITION.set(position)
        if position > before:
            self._on_append(position)

    async def _send(self, batch: list[_Queued]) -> list[Row]:
        """One statement; over a lost connection the same batch again, recognised by its command ids.

        Raises:
            StoreUnavailable: not within RESEND_MAX_S.
            _EpochMoved: the log was restored or promoted since the batch was decided.
            psycopg.Error: the batch itself is at fault.
        """
        began = time.monotonic()
        attempt, resend_max_s = 0, RESEND_MAX_S
        while True:
            try:
                if self._channel is None:
                    await self._connect()
                if any(one.epoch != self._epoch for one in batch):
                    raise _EpochMoved
                rows = await self._call(batch)
                self._failing = ""
                return rows
            except psycopg.Error as error:
                if not _is_passing(error):
                    raise
                self._failing = _primary(error)
                await self._disconnect()
                if (error.sqlstate or "").startswith("53"):
                    resend_max_s = FULL_RESEND_MAX_S
                if time.monotonic() - began > (CLOSING_RESEND_MAX_S if self._closing else resend_max_s):
                    raise StoreUnavailable("the database does not answer") from error
                pause_s = RESEND_PAUSE_S[min(attempt, len(RESEND_PAUSE_S) - 1)]
                attempt += 1
                log.warning("append_resent", commands=len(batch), attempt=attempt, error=_primary(error))
                metrics.APPEND_RESENDS.inc()
                await asyncio.sleep(pause_s)

    async def _call(self, batch: list[_Queued]) -> list[Row]:
        assert self._channel is not None
        assert self._epoch is not None
        started = time.perf_counter()
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                rows = await self._channel.call(wire.payloads(self._epoch, [one.rendered for one in batch]))
        except TimeoutError as error:
            raise psycopg.OperationalError(f"no answer within {CALL_TIMEOUT_S} s") from error
        metrics.APPEND_SECONDS.observe(time.perf_counter() - started)
        return rows

    async def _connect(self) -> None:
        connection = await postgres.connect(self._dsn, prepare=self._prepare)
        try:
            await connection.execute(f"SET statement_timeout = {STATEMENT_TIMEOUT_MS}")
            row = await (await connection.execute("SELECT epoch FROM log_head")).fetchone()
            assert row is not None, "the log has no head: the database is not migrated"
            self._channel = Channel(connection, prepare=self._prepare)
        except BaseException:
            await connection.close()
            raise
        self._epoch = row[0]
        self._on_epoch(row[0])

    async def _disconnect(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()


def _other(outcome: str, position: int, result: bytes | None, at: datetime) -> Outcome:
    match outcome:
        case "repeat":
            return Repeat(position, at, result)
        case "guard":
            return Blocked(msgspec.json.decode(result or b'""', type=str))
        case _:
            return Stale()


def _is_passing(error: psycopg.Error) -> bool:
    """Whether the same batch may fare better on a new connection: a lost link, a stopping server or one that does not
    write, a lock, a full disk.
    """
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return error.sqlstate in {EPOCH_MOVED, READ_ONLY} or error.sqlstate[:2] in {"08", "40", "53", "55", "57", "58"}


def _primary(error: psycopg.Error) -> str:
    return error.diag.message_primary or str(error)
