"""The outbox: follows the log and notes who is to be told what, in the transaction that moves its checkpoint.

So there is one delivery for each event and receiver, whatever dies when. Who wants to be told is folded from the log
here as well, and is therefore as of the very event. Sending is deliveries.py's; both run in one process, and of several
such processes one works and the others wait.
"""

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

import msgspec
import psycopg
import structlog
from msgspec import Struct

from ..adapters import metrics, postgres
from ..adapters.egress import Egress
from ..adapters.egress_rules import Rules, UrlRefused
from ..adapters.event_store.reader import LogHole, Tail
from ..domain import webhooks
from .deliveries import Dispatcher
from .lifecycle import Services, pause

PAGE_EVENTS_MAX = 2_000
LOOK_S = 0.5  # how often what has become due is looked for, when nothing else calls for it
WAITING_PAUSE_S = 1.0
RETRY_PAUSE_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
ALARM_PAUSE_S = 10.0
DEACTIVATED = "user.deactivated"
TOLD = [*webhooks.TYPES_BY_TAG, *(str(one.__struct_config__.tag) for one in webhooks.Event.__args__), DEACTIVATED]

# The lock is the connection's: it is free again as soon as the process that had it is gone.
LOCK: LiteralString = "SELECT pg_try_advisory_lock(hashtext('sightline.webhooks'))"
OPEN: LiteralString = "SELECT position, (SELECT epoch FROM log_head) FROM webhook_outbox"
SUBSCRIPTIONS: LiteralString = "SELECT webhook_id, owner, url, types, kinds, active FROM webhook_subscriptions"
PAGE: LiteralString = (
    "SELECT position, stream_id, topic, recorded_at, CASE WHEN topic = ANY (%(told)s) THEN data END FROM events"
    " WHERE position > %(after)s ORDER BY position LIMIT %(limit)s"
)
# Owner and kind never change; what a stream began with says them.
BEGAN: LiteralString = (
    "SELECT s.stream_id, e.data ->> 'owner', e.data ->> 'kind', e.data ->> 'callback_url'"
    " FROM unnest(%s::uuid[]) AS s (stream_id), LATERAL ("
    "SELECT data FROM events WHERE stream_id = s.stream_id AND version = 1 LIMIT 1) AS e"
)
MOVE: LiteralString = "UPDATE webhook_outbox SET position = %s WHERE position = %s"
SUBSCRIBE: LiteralString = (
    "INSERT INTO webhook_subscriptions (webhook_id, owner, url, types, kinds, active)"
    " VALUES (%s, %s, %s, %s::jsonb, %s::jsonb, %s) ON CONFLICT (webhook_id) DO UPDATE SET url = excluded.url,"
    " types = excluded.types, kinds = excluded.kinds, active = excluded.active,"
    " failing_since = CASE WHEN excluded.active THEN webhook_subscriptions.failing_since END"
)
FORGET: LiteralString = "DELETE FROM webhook_subscriptions WHERE webhook_id = ANY (%s)"
DELIVER: LiteralString = (
    "INSERT INTO webhook_deliveries (delivery_id, webhook_id, job_id, url, host, message_id, type, body,"
    " event_position, status, attempts_made, tries_left, next_attempt_at, created_at)"
    " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, 'pending', 0, %s, clock_timestamp(), clock_timestamp())"
)
MOVE_HOST: LiteralString = "UPDATE webhook_deliveries SET host = %s WHERE webhook_id = %s AND status = 'pending'"
ABANDON: LiteralString = (
    "UPDATE webhook_deliveries SET status = 'abandoned', finished_at = clock_timestamp()"
    " WHERE webhook_id = %s AND status = 'pending' AND event_position < %s"
)
REDELIVER: LiteralString = (
    "UPDATE webhook_deliveries SET status = 'pending', finished_at = NULL, next_attempt_at = clock_timestamp(),"
    " tries_left = %s WHERE delivery_id = %s AND webhook_id = %s"
)

log = structlog.get_logger(__name__)


class Overtaken(Exception):
    """Somebody else moved the checkpoint."""


class Said(Struct, frozen=True):
    """An event as the outbox reads it; `data` is None for those that tell nobody anything."""

    position: int
    stream_id: UUID
    topic: str
    recorded_at: datetime
    data: bytes | None


class Subscription(Struct, frozen=True):
    owner: str
    url: str
    types: frozenset[str]
    kinds: frozenset[str] | None
    active: bool

    def wants(self, kind_of_message: str, owner: str | None, kind: str | None) -> bool:
        """`owner` and `kind` are the job's or the batch's; None of what belongs to all."""
        return (
            self.active
            and kind_of_message in self.types
            and owner in {None, self.owner}
            and (kind is None or self.kinds is None or kind in self.kinds)
        )


class Began(Struct, frozen=True):
    owner: str | None
    kind: str | None
    callback_url: str | None


_NOTHING = Began(None, None, None)


class Page(Struct):
    """What a page comes to, gathered before anything is written."""

    deliveries: list[tuple[Any, ...]]
    changed: dict[UUID, None]
    abandoned: dict[UUID, int]  # and the position from which on deliveries are none of it
    redelivered: list[tuple[UUID, UUID]]


class Outbox:
    """One holder of the lock, on its connection. Open it with open_outbox()."""

    def __init__(
        self,
        connection: psycopg.AsyncConnection,
        rules: Rules,
        position: int,
        epoch: UUID,
        subscriptions: dict[UUID, Subscription],
    ) -> None:
        self._connection = connection
        self._rules = rules
        self._epoch = epoch
        self._subscriptions = subscriptions
        self.position = position

    async def step(self) -> int:
        """Take the next page; how many events it had.

        Raises:
            LogHole: an event is missing.
            Overtaken, psycopg.Error: nothing was noted; open it anew.
        """
        values = {"told": TOLD, "after": self.position, "limit": PAGE_EVENTS_MAX}
        cursor = await self._connection.execute(PAGE, values)
        events = [Said(*row) for row in await cursor.fetchall()]
        if not events:
            return 0
        before, after = self.position, events[-1].position
        if after - before != len(events):
            raise LogHole(f"a position between {before} and {after} is missing from the log")
        telling = [one for one in events if one.data is not None]
        page = self._gathered(telling, await self._began(telling))
        async with self._connection.transaction():
            moved = await self._connection.execute(MOVE, (after, before))
            if moved.rowcount != 1:
                raise Overtaken(f"the outbox is not at {before}")
            await self._write(page)
        self.position = after
        metrics.WEBHOOK_POSITION.set(after)
        return len(events)

    async def _began(self, events: Sequence[Said]) -> dict[UUID, Began]:
        wanted = {one.stream_id for one in events if one.topic.startswith(("job.", "batch."))}
        if not wanted:
            return {}
        cursor = await self._connection.execute(BEGAN, (list(wanted),))
        return {stream_id: Began(*rest) for stream_id, *rest in await cursor.fetchall()}

    def _gathered(self, events: Sequence[Said], began: dict[UUID, Began]) -> Page:
        page = Page([], {}, {}, [])
        for one in events:
            assert one.data is not None
            said = msgspec.json.decode(one.data)
            if one.topic.startswith("webhook."):
                self._subscribe(page, one, said)
            elif one.topic == DEACTIVATED:
                self._deactivate(page, one)
            else:
                self._tell(page, one, said, began.get(one.stream_id, _NOTHING))
        return page

    def _subscribe(self, page: Page, at: Said, said: dict[str, Any]) -> None:
        """What a webhook's own event changes, as of its position."""
        webhook_id = at.stream_id
        known = self._subscriptions.get(webhook_id)
        match at.topic.partition(".")[2]:
            case "registered":
                self._put(page, webhook_id, said["owner"], said, active=True)
            case "changed" if known is not None:
                self._put(page, webhook_id, known.owner, said, active=known.active)
            case "enabled" if known is not None:
                self._activate(page, webhook_id, known, active=True)
            case "disabled" if known is not None:
                self._activate(page, webhook_id, known, active=False)
                page.abandoned[webhook_id] = at.position
            case "deleted":
                self._subscriptions.pop(webhook_id, None)
                page.changed[webhook_id] = None
                page.abandoned[webhook_id] = at.position
            case "tested" if known is not None:
                body = _body(webhooks.TEST_TYPE, at.recorded_at, {"webhook_id": str(webhook_id)})
                self._deliver(page, at, webhooks.TEST_TYPE, body, webhook_id, known.url)
            case "redelivery_requested":
                page.redelivered.append((UUID(said["delivery_id"]), webhook_id))

    def _put(self, page: Page, webhook_id: UUID, owner: str, said: dict[str, Any], *, active: bool) -> None:
        kinds = None if said["kinds"] is None else frozenset(said["kinds"])
        self._subscriptions[webhook_id] = Subscription(owner, said["url"], frozenset(said["types"]), kinds, active)
        page.changed[webhook_id] = None

    def _activate(self, page: Page, webhook_id: UUID, known: Subscription, *, active: bool) -> None:
        self._subscriptions[webhook_id] = msgspec.structs.replace(known, active=active)
        page.changed[webhook_id] = None

    def _deactivate(self, page: Page, at: Said) -> None:
        """Whoever is out is told nothing any more."""
        owner = f"user:{at.stream_id}"
        for webhook_id, one in list(self._subscriptions.items()):
            if one.owner == owner:
                self._activate(page, webhook_id, one, active=False)
                page.abandoned[webhook_id] = at.position

    def _tell(self, page: Page, at: Said, said: dict[str, Any], began: Began) -> None:
        kind = webhooks.TYPES_BY_TAG[at.topic]
        receivers = [
            (webhook_id, one.url)
            for webhook_id, one in self._subscriptions.items()
            if one.wants(kind, began.owner, began.kind)
        ]
        if not receivers and began.callback_url is None:
            return
        data = webhooks.message_data(at.topic, at.stream_id, at.position, said, began.kind or "")
        body = _body(kind, at.recorded_at, data)
        for webhook_id, url in receivers:
            self._deliver(page, at, kind, body, webhook_id, url)
        if began.callback_url is not None and at.topic.startswith("job."):
            self._deliver(page, at, kind, body, None, began.callback_url)

    def _deliver(self, page: Page, at: Said, kind: str, body: str, webhook_id: UUID | None, url: str) -> None:
        made = webhooks.delivery_id(self._epoch, webhook_id, at.position)
        is_callback = webhook_id is None
        page.deliveries.append(
            (
                made,
                webhook_id,
                at.stream_id if is_callback else None,
                url if is_callback else None,
                host_of(self._rules, url),
                f"msg_{made.hex}",
                kind,
                body,
                at.position,
                webhooks.ATTEMPTS_MAX,
            )
        )

    async def _write(self, page: Page) -> None:
        """In the order of what they rest on: what was given up can be asked for again in the same page."""
        async with self._connection.cursor() as cursor:
            if page.deliveries:
                await cursor.executemany(DELIVER, page.deliveries)
            for webhook_id in page.changed:
                known = self._subscriptions.get(webhook_id)
                if known is None:
                    await cursor.execute(FORGET, ([webhook_id],))
                    continue
                types, kinds = _json(known.types), None if known.kinds is None else _json(known.kinds)
                await cursor.execute(SUBSCRIBE, (webhook_id, known.owner, known.url, types, kinds, known.active))
                await cursor.execute(MOVE_HOST, (host_of(self._rules, known.url), webhook_id))
            for webhook_id, position in page.abandoned.items():
                await cursor.execute(ABANDON, (webhook_id, position))
            for asked, webhook_id in page.redelivered:
                await cursor.execute(REDELIVER, (webhooks.ATTEMPTS_MAX, asked, webhook_id))


async def open_outbox(connection: psycopg.AsyncConnection, rules: Rules) -> Outbox:
    """From where its checkpoint is, with the subscriptions as of there."""
    row = await (await connection.execute(OPEN)).fetchone()
    assert row is not None, "the schema has an outbox"
    position, epoch = row
    found = await (await connection.execute(SUBSCRIPTIONS)).fetchall()
    subscriptions = {
        webhook_id: Subscription(owner, url, frozenset(types), None if kinds is None else frozenset(kinds), active)
        for webhook_id, owner, url, types, kinds, active in found
    }
    return Outbox(connection, rules, position, epoch, subscriptions)


async def run(services: Services, stopping: asyncio.Event) -> None:
    """Note and deliver until `stopping`, under the settings' rules."""
    settings = services.settings
    lookups_max = settings.webhook_concurrency_max
    async with Egress(Rules.of(settings), timeout_s=settings.webhook_timeout_s, lookups_max=lookups_max) as egress:
        await deliver(services, egress, stopping)


async def deliver(services: Services, egress: Egress, stopping: asyncio.Event) -> None:
    """The same through an opened egress; what is being sent at the stop gets a few seconds to be answered."""
    settings = services.settings
    dsn = settings.database_direct_url or settings.database_url
    failures = 0
    async with Tail(dsn) as tail, Dispatcher(services, egress) as dispatcher:
        while not stopping.is_set():
            try:
                async with await postgres.connect(dsn) as connection:
                    if not await _locked(connection):
                        await pause(stopping, WAITING_PAUSE_S)
                        continue
                    outbox = await open_outbox(connection, Rules.of(settings))
                    looked = 0.0
                    while not stopping.is_set():
                        looked = await _round(outbox, dispatcher, tail, looked)
                        failures = 0  # not before: it may open each time, and fail at the same page
            except (psycopg.Error, Overtaken) as error:
                log.warning("webhooks_failed", error=repr(error))
                await pause(stopping, RETRY_PAUSE_S[min(failures, len(RETRY_PAUSE_S) - 1)])
                failures += 1
            except Exception:  # a hole in the log, an event that cannot be read: nothing is told past it
                log.critical("webhooks_stand", exc_info=True)
                await pause(stopping, ALARM_PAUSE_S)


async def _round(outbox: Outbox, dispatcher: Dispatcher, tail: Tail, looked: float) -> float:
    """Note a page, begin what is due, or wait for either; when it was last looked for what is due."""
    moved = await outbox.step()
    if moved or dispatcher.freed or time.monotonic() - looked > LOOK_S:
        await dispatcher.start_due()
        looked = time.monotonic()
    if not moved:
        await tail.wait()
    return looked


async def _locked(connection: psycopg.AsyncConnection) -> bool:
    row = await (await connection.execute(LOCK)).fetchone()
    return row is not None and bool(row[0])


def host_of(rules: Rules, url: str) -> str:
    """Under which attempts are counted; the rules may have changed since the URL was taken."""
    try:
        return rules.target(url).host
    except UrlRefused:
        return "refused"


def _body(kind: str, at: datetime, data: dict[str, Any]) -> str:
    return msgspec.json.encode({"type": kind, "timestamp": at, "data": data}).decode()


def _json(values: frozenset[str]) -> str:
    return msgspec.json.encode(sorted(values)).decode()
