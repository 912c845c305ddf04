"""What happens to jobs, as it happens: one reader of the log for all who listen to this process.

It makes each event of a job into a frame, once, and keeps the last of them in a ring. A listener is a cursor, a filter
and something to be woken by, no queue: whoever falls behind the ring reads on from the log, page by page, and the
reader waits for nobody.
"""

import asyncio
from collections import OrderedDict
from random import randint
from typing import TypeVar
from uuid import UUID

import psycopg
import structlog
from eventsourcing.persistence import MapperDeserialisationError

from ..adapters import metrics
from ..adapters.event_store.codec import Recorded
from ..adapters.event_store.reader import PAGE_EVENTS_MAX, RECONNECT_PAUSE_S, LogHole, Tail
from ..adapters.event_store.store import EventStore
from ..domain import jobs
from ..domain.events import kind_of
from ..domain.kernel import Credential, Rejection
from .frames import Asked, Frame, Ring, frame

FRAMES_MAX = 16_384  # in the ring; about 1 KiB each
FRAMES_AT_ONCE = 100  # to one listener, before others have their turn
LOOKED_AT_MAX = 2_000  # frames of the ring in one go
CATCHING_UP_MAX = 3  # pages of the log that are read for listeners at once; requests have the other connections
KNOWN_JOBS_MAX = 20_000
LINGER_S = 5.0  # how long the log is read on after the last listener left
RETRY_MS = (1_000, 3_000)  # after which a client may come back; a millisecond more for each that listens

CREDENTIALS = frozenset({"user", "api_key"})  # whose events may take a credential back

K = TypeVar("K")
T = TypeVar("T")

log = structlog.get_logger(__name__)


class TooManyStreams(Rejection):
    """As many listen as may."""

    code = "too_many_streams"


class Stopping(Rejection):
    """The process ends."""

    code = "stopping"


class Listener:
    """One client: what wakes it, and why it ends.

    Attributes:
        epoch: of the log that its cursors belong to.
        ended: the code of what ended it; whoever serves it says so and lets go.
        doubted: something happened to its credential: look again before anything more is sent.
        subscriptions: that are followed for it, and go with it.
    """

    __slots__ = ("_is_awake", "_rest", "credential", "doubted", "ended", "epoch", "subscriptions", "transport")

    def __init__(self, transport: str, credential: Credential | None) -> None:
        self.transport = transport
        self.credential = credential
        self.epoch: UUID | None = None
        self.ended: str | None = None
        self.doubted = False
        self.subscriptions: set[Subscription] = set()
        self._is_awake = False
        self._rest: asyncio.Future[None] | None = None

    def end(self, code: str) -> None:
        """For the first reason that there is."""
        self.ended = self.ended or code
        self.wake()

    def wake(self) -> None:
        self._is_awake = True
        self._stir()

    async def rest(self, timeout_s: float) -> bool:
        """Until there is something to do, or the time is over; whether there is."""
        if not self._is_awake:
            loop = asyncio.get_running_loop()
            self._rest = loop.create_future()
            timer = loop.call_later(timeout_s, self._stir)
            try:
                await self._rest
            finally:
                timer.cancel()
        was_awake, self._is_awake = self._is_awake, False
        return was_awake

    def _stir(self) -> None:
        if self._rest is not None and not self._rest.done():
            self._rest.set_result(None)


class Subscription:
    """A listener's place in what it asked for.

    Attributes:
        number: by which a WebSocket's client tells its subscriptions apart.
        cursor: everything up to this position was sent, or was not asked for.
        due: the first position past the cursor that may be for it; None where the reader of the log has seen none.
        status: of the job, as the last frame that was sent tells.
        is_over: nothing more will come; it is kept only for its number.
    """

    __slots__ = ("asked", "cursor", "due", "is_over", "listener", "number", "status")

    def __init__(self, listener: Listener, asked: Asked, cursor: int, number: int = 0) -> None:
        self.listener = listener
        self.asked = asked
        self.cursor = cursor
        self.due: int | None = cursor + 1
        self.number = number
        self.status: str | None = None
        self.is_over = False


class Feed:
    """One per process. Reads the log while anybody listens.

    Args:
        dsn: without a pooler between, for LISTEN.
        streams_max: listeners at once.
        frames_max: of the ring.
    """

    def __init__(self, store: EventStore, dsn: str, *, streams_max: int, frames_max: int = FRAMES_MAX) -> None:
        self._store = store
        self._dsn = dsn
        self._streams_max = streams_max
        self._ring = Ring(frames_max)
        self._known: OrderedDict[UUID, jobs.JobSubmitted] = OrderedDict()
        self._epoch: UUID | None = None  # None: the log is not being read
        self._head = 0
        self._listeners: set[Listener] = set()
        self._by_key: dict[object, set[Subscription]] = {}
        self._by_credential: dict[UUID, set[Listener]] = {}
        self._catching_up = asyncio.Semaphore(CATCHING_UP_MAX)
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False

    def __len__(self) -> int:
        return len(self._listeners)

    @property
    def subscriptions(self) -> int:
        """How many are followed, for all who listen."""
        return sum(len(those) for those in self._by_key.values())

    # Listeners come and go.

    def join(self, transport: str, credential: Credential | None) -> Listener:
        """
        Raises:
            TooManyStreams: as many listen as may.
            Stopping: the process ends.
        """
        if self._is_stopping:
            raise Stopping("this process ends; another one goes on")
        if len(self._listeners) >= self._streams_max:
            raise TooManyStreams(f"{self._streams_max} clients listen already", retry_after_s=RETRY_MS[1] // 1000)
        listener = Listener(transport, credential)
        self._listeners.add(listener)
        for known in _ids(credential):
            self._by_credential.setdefault(known, set()).add(listener)
        metrics.LIVE_STREAMS.labels(transport).inc()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="feed")
        return listener

    def leave(self, listener: Listener) -> None:
        """With everything that is followed for it, whatever whoever serves it knows of. Twice is once."""
        for subscription in list(listener.subscriptions):
            self.drop(subscription)
        if listener not in self._listeners:
            return
        self._listeners.discard(listener)
        for known in _ids(listener.credential):
            _discard(self._by_credential, known, listener)
        metrics.LIVE_STREAMS.labels(listener.transport).dec()
        metrics.LIVE_ENDED.labels(listener.ended or "left").inc()

    def follow(self, listener: Listener, asked: Asked, *, after: int, number: int = 0) -> Subscription:
        """From `after` on, a position of the listener's epoch."""
        subscription = Subscription(listener, asked, after, number)
        self._by_key.setdefault(asked.key, set()).add(subscription)
        listener.subscriptions.add(subscription)
        listener.wake()
        return subscription

    def drop(self, subscription: Subscription) -> None:
        subscription.is_over = True
        subscription.listener.subscriptions.discard(subscription)
        _discard(self._by_key, subscription.asked.key, subscription)

    def stop(self) -> None:
        """Let everybody go, each with a last word: the process ends."""
        self._is_stopping = True
        self._end("stopping")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    # What a listener is sent.

    async def read(self, subscription: Subscription) -> list[Frame] | None:
        """The next frames, perhaps none of those that were looked at; None where all that there is was read.

        Raises:
            psycopg.Error: the database does not answer.
            LogHole: a position is missing.
        """
        listener = subscription.listener
        if self._epoch is not None and listener.epoch != self._epoch:
            listener.end("epoch_changed")
            return None
        if subscription.due is None:
            return None
        after = max(subscription.cursor, subscription.due - 1)
        if self._epoch is None or after < self._ring.floor:
            return await self._from_log(subscription, after)
        return self._from_ring(subscription, after)

    def reached(self, subscription: Subscription) -> int:
        """The position up to which a subscription that was read to its end has everything."""
        return subscription.cursor if subscription.due is not None else max(subscription.cursor, self._head)

    def _from_ring(self, subscription: Subscription, after: int) -> list[Frame] | None:
        found: list[Frame] = []
        for looked_at, one in enumerate(self._ring.past(after), 1):
            subscription.cursor = one.position
            if one.fits(subscription.asked):
                found.append(one)
            if len(found) >= FRAMES_AT_ONCE or looked_at >= LOOKED_AT_MAX:
                subscription.due = subscription.cursor + 1
                return found
        subscription.due = None
        return found or None

    async def _from_log(self, subscription: Subscription, after: int) -> list[Frame] | None:
        """A page. Of one job the log finds the events by itself; of anything else every event is looked at."""
        asked = subscription.asked
        async with self._catching_up:
            past = await self._store.reader.past(after=after, stream_id=asked.job)
            frames = await self._frames(past.events, past.epoch)
        if past.epoch != subscription.listener.epoch:
            subscription.listener.end("epoch_changed")
            return None
        if past.events:
            is_all = asked.job is not None and len(past.events) < PAGE_EVENTS_MAX
            subscription.cursor = past.position if is_all else past.events[-1].position
            return [one for one in frames if one.fits(asked)]
        subscription.cursor = max(after, past.position if asked.job is not None else after)
        is_covered = self._epoch is not None and subscription.cursor >= self._ring.floor
        return [] if is_covered else None

    # The log.

    async def _run(self) -> None:
        """While anybody listens, and a little longer. Whoever comes as it ends is not left behind."""
        while True:
            async with Tail(self._dsn) as tail:
                await self._read_on(tail)
            if not self._listeners:
                break
        self._forget()

    async def _read_on(self, tail: Tail) -> None:
        loop = asyncio.get_running_loop()
        alone_since_s = None
        while alone_since_s is None or loop.time() - alone_since_s < LINGER_S:
            try:
                has_grown = await self._advance()
            except psycopg.Error as error:
                log.warning("feed_interrupted", error=str(error))
                await asyncio.sleep(RECONNECT_PAUSE_S)
                continue
            except Exception as error:  # or all who listen would wait for ever, and be told nothing
                log.exception("feed_stopped")
                self._end("log_damaged" if isinstance(error, LogHole) else "internal_error")
                self._forget()
                await asyncio.sleep(RECONNECT_PAUSE_S)
                continue
            if not has_grown:
                await tail.wait()
            alone_since_s = None if self._listeners else (alone_since_s or loop.time())

    async def _advance(self) -> bool:
        """Read what came, once; whether there was anything."""
        if self._epoch is None:
            head = await self._store.reader.head()
            self._epoch, self._head = head.epoch, head.position
            self._ring.begin(head.position)
            self._wake_all()
            return True
        past = await self._store.reader.past(after=self._head)
        if past.epoch != self._epoch:
            self._end("epoch_changed")
            self._forget()
            return True
        if not past.events:
            return False
        for one in await self._frames(past.events, past.epoch):
            self._ring.add(one)
            self._tell(one)
        self._head = past.events[-1].position
        for recorded in past.events:
            if kind_of(recorded.topic) in CREDENTIALS:
                self._doubt(recorded.stream_id)
        return True

    def _tell(self, one: Frame) -> None:
        for key in one.found_under():
            for subscription in self._by_key.get(key, ()):
                if subscription.due is None and one.fits(subscription.asked):
                    subscription.due = one.position
                    subscription.listener.wake()

    def _doubt(self, stream_id: UUID) -> None:
        """Whoever came with this credential, or as this user, is looked at again before he is told anything more."""
        for listener in self._by_credential.get(stream_id, ()):
            listener.doubted = True
            listener.wake()

    def _end(self, code: str) -> None:
        for listener in self._listeners:
            listener.end(code)

    def _wake_all(self) -> None:
        for listener in self._listeners:
            listener.wake()

    def _forget(self) -> None:
        self._epoch = None
        self._ring.begin(0)
        self._known.clear()

    async def _frames(self, events: list[Recorded], epoch: UUID) -> list[Frame]:
        """The events of jobs among these, as they are sent. One that cannot be read is told without its facts."""
        of_jobs = [recorded for recorded in events if kind_of(recorded.topic) == jobs.AGGREGATE.kind]
        said = {recorded.position: self._event(recorded) for recorded in of_jobs}
        for recorded in of_jobs:
            if isinstance(event := said[recorded.position], jobs.JobSubmitted):
                self._known[recorded.stream_id] = event
        submitted = {recorded.stream_id: self._known.get(recorded.stream_id) for recorded in of_jobs}
        missing = [job_id for job_id, one in submitted.items() if one is None]
        for first in await self._store.reader.first(missing) if missing else ():
            if isinstance(event := self._event(first), jobs.JobSubmitted):
                self._known[first.stream_id] = submitted[first.stream_id] = event
        while len(self._known) > KNOWN_JOBS_MAX:
            self._known.popitem(last=False)
        return [
            frame(recorded, said[recorded.position], known, epoch)
            for recorded in of_jobs
            if (known := submitted[recorded.stream_id]) is not None
        ]

    def _event(self, recorded: Recorded) -> object:
        try:
            return self._store.mapper.event(recorded)
        except MapperDeserialisationError as error:
            log.warning("event_unreadable", position=recorded.position, error=str(error))
            return None


def retry_ms(listeners: int) -> int:
    """When a client may come back: the more there are, the longer they take turns, for all are cut off at once."""
    return randint(RETRY_MS[0], RETRY_MS[1] + listeners)  # noqa: S311  # nothing secret


def _ids(credential: Credential | None) -> list[UUID]:
    if credential is None:
        return []
    return [credential.user_id] if credential.key_id is None else [credential.user_id, credential.key_id]


def _discard(found: dict[K, set[T]], key: K, one: T) -> None:
    those = found.get(key)
    if those is not None:
        those.discard(one)
        if not those:
            del found[key]
