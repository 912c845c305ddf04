"""Jobs as they happen, as server-sent events: of one job, of a batch, or of whatever fits a filter.

The id of each event is its position with the log's epoch. A client that comes back with the last one it saw, as
EventSource does by itself, goes on right after it: no gap, and nothing twice.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from uuid import UUID

import msgspec
import psycopg
from litestar import Controller, Request, Response, get
from litestar.params import FromPath, FromQuery, HeaderParameter, QueryParameter
from litestar.types import Receive, Scope, Send
from msgspec import Struct
from msgspec.structs import replace

from ..adapters import metrics
from ..adapters.event_store.reader import LogHole
from ..domain import batches, jobs
from ..domain.access import require, require_own
from ..domain.kernel import Credential, Grant, NotFound, Rejection
from ..domain.kinds import require_known
from .auth import LOCAL, Admitted, AnyConnection, Guard, takes
from .connections import BECOME_LIVE
from .cursors import marked, unmarked
from .feed import Feed, Listener, Subscription, retry_ms
from .frames import Asked, Frame, snapshot
from .manners import CURSOR, Parts
from .nouns import as_of
from .patience import HEADLESS_ASKED, LIVE
from .services import Services

SSE = "text/event-stream"
HEARTBEAT_S = 15.0  # between signs of life where nothing happens; each looks at the credential again
DATABASE_PAUSE_S = 1.0  # while the database does not answer
PERMISSION = "jobs:read"
OVER = "over"  # why a stream ends that has said all there is to say

AfterPosition = Annotated[
    str | None, QueryParameter(pattern=CURSOR, description="Events past this position, or cursor; none is from now on.")
]
LastEventId = Annotated[
    str | None,
    HeaderParameter(
        name="Last-Event-ID", pattern=CURSOR, description="Of the last event that was seen; counts before `after`."
    ),
]


class Begun(Struct, frozen=True, kw_only=True):
    """Where a subscription begins.

    Attributes:
        snapshot: the job's state there, where one job is listened to from now on.
        status: of that job today.
        is_over: it has ended, and nothing was said of it past the cursor.
    """

    cursor: int
    epoch: UUID
    snapshot: Frame | None = None
    status: str | None = None
    is_over: bool = False


class Visitor:
    """Who listens, asked again and again: what was let in yesterday may be nobody today.

    Args:
        headers: those of a request that show a credential.
    """

    def __init__(self, services: Services, headers: Mapping[str, str]) -> None:
        self._guard = Guard(services)
        self._enabled = services.settings.auth_enabled
        self._headers = {name: headers[name] for name in ("authorization", "x-api-key") if name in headers}

    async def admitted(self) -> Admitted:
        """
        Raises:
            NotAuthenticated: nobody we know, or nobody any more.
            NotAllowed: somebody else may.
        """
        principal = await self._guard.authenticate(self._headers) if self._enabled else LOCAL
        return Admitted(principal, Grant(PERMISSION, require(principal.rights, PERMISSION)))

    async def require_still(self, owner: str | None) -> None:
        """The same, of whoever was let in to what is `owner`'s.

        Raises:
            NotAuthenticated: he is nobody any more.
            NotAllowed: he may not any more, or not so far.
        """
        who = await self.admitted()
        assert who.grant is not None
        if who.owner not in (None, owner):
            require_own(who.grant.reach, owner=owner or "", actor=who.principal.actor, permission=PERMISSION)


async def begin(services: Services, asked: Asked, after: str | None) -> Begun:
    """Where to begin with what was asked for.

    Raises:
        UnknownKind, NotFound: there is no such kind, job or batch.
        NotAllowed: it is somebody else's.
        EpochChanged: the cursor is of the log before a restore.
    """
    if asked.kind is not None:
        require_known(asked.kind)
    if asked.batch is not None:
        batch = await services.commands.today(batches.AGGREGATE, asked.batch)
        if batch.submitted is None:
            raise NotFound("no such batch")
        _require_own(asked, batch.submitted.owner)
    if asked.job is None:
        head = await services.store.reader.head()
        return Begun(cursor=head.position if after is None else unmarked(after, head.epoch), epoch=head.epoch)
    then = await as_of(services, jobs.AGGREGATE, asked.job, None)
    job: jobs.Job = then.state
    assert job.submitted is not None, "a job begins with JobSubmitted"
    _require_own(asked, job.submitted.owner)
    cursor = then.position if after is None else unmarked(after, then.epoch)
    if after is None and job.status == "deleted":
        raise NotFound("no such job")
    return Begun(
        cursor=cursor,
        epoch=then.epoch,
        snapshot=snapshot(cursor, asked.job, job, then.epoch) if after is None else None,
        status=job.status,
        is_over=after is not None and jobs.is_terminal(job) and then.events[-1].position <= cursor,
    )


def _require_own(asked: Asked, owner: str) -> None:
    if asked.owner is not None:
        require_own("own", owner=owner, actor=asked.owner, permission=PERMISSION)


def subscribe(feed: Feed, listener: Listener, asked: Asked, begun: Begun, *, number: int = 0) -> Subscription:
    """Follow what was begun."""
    listener.epoch = begun.epoch
    subscription = feed.follow(listener, asked, after=begun.cursor, number=number)
    subscription.status = begun.status
    return subscription


class Flow(ABC):
    """From the feed to one client, whichever way it is told.

    Attributes:
        subscriptions: by their numbers.
    """

    def __init__(self, feed: Feed, listener: Listener, visitor: Visitor, owner: str | None) -> None:
        self.feed = feed
        self.listener = listener
        self.subscriptions: dict[int, Subscription] = {}
        self._visitor = visitor
        self._owner = owner

    @abstractmethod
    async def put(self, subscription: Subscription, frames: Sequence[Frame]) -> None:
        """Send frames; return when the client's connection takes more."""

    @abstractmethod
    async def finish(self, subscription: Subscription) -> None:
        """Tell that there will be no more of this one."""

    @abstractmethod
    async def beat(self) -> None:
        """Give a sign of life."""

    async def run(self) -> str:
        """Send whatever comes, until there is a reason to end; that reason."""
        listener = self.listener
        while listener.ended is None:
            try:
                if listener.doubted:
                    await self._look_again()
                if await self._round() or await listener.rest(HEARTBEAT_S):
                    continue
                listener.doubted = True  # a token's time may be over; what was taken back the feed has told
                await self.beat()
            except psycopg.Error:
                await asyncio.sleep(DATABASE_PAUSE_S)
            except LogHole:
                listener.end("log_damaged")
            except Rejection as refused:
                listener.end(refused.code)
        return listener.ended

    async def _look_again(self) -> None:
        self.listener.doubted = False
        try:
            await self._visitor.require_still(self._owner)
        except psycopg.Error:
            self.listener.doubted = True
            raise

    async def _round(self) -> bool:
        """Something of each subscription; whether there may be more."""
        is_busy = False
        for subscription in list(self.subscriptions.values()):
            before = subscription.cursor, subscription.due
            frames = await self.feed.read(subscription)
            if self.listener.ended is not None or self.listener.doubted:
                subscription.cursor, subscription.due = before  # they are not sent before we have looked again
                return True
            if frames is not None:
                is_busy = True
                if frames and not subscription.is_over:
                    subscription.status = next(
                        (one.status for one in reversed(frames) if one.status), subscription.status
                    )
                    await self.put(subscription, frames)
                    metrics.LIVE_FRAMES.inc(len(frames))
            elif subscription.is_over:
                continue  # its client let go of it while the log was read
            elif subscription.asked.job is not None and subscription.status in jobs.TERMINAL:
                self.feed.drop(subscription)
                del self.subscriptions[subscription.number]
                await self.finish(subscription)
        return is_busy


class _Events(Flow):
    """As server-sent events, of one subscription."""

    def __init__(self, stream: "EventStream", send: Send) -> None:
        super().__init__(stream.feed, stream.listener, stream.visitor, stream.subscription.asked.owner)
        self.subscriptions[0] = stream.subscription
        self._subscription = stream.subscription
        self._epoch = stream.begun.epoch
        self._send = send

    async def put(self, subscription: Subscription, frames: Sequence[Frame]) -> None:  # noqa: ARG002  # there is one
        await self.say(b"".join([one.sse for one in frames]))

    async def finish(self, subscription: Subscription) -> None:
        await self.say(ending(subscription.status or OVER))
        self.listener.end(OVER)

    async def beat(self) -> None:
        """With how far we are, so that whoever comes back need not be looked for what he has not missed."""
        mark = marked(self.feed.reached(self._subscription), self._epoch)
        await self.say(b": \nid: %b\n\n" % mark.encode())

    async def say(self, text: bytes) -> None:
        await self._send({"type": "http.response.body", "body": text, "more_body": True})


def ending(reason: str) -> bytes:
    return b"event: end\ndata: %b\n\n" % msgspec.json.encode({"reason": reason})


class EventStream:
    """The answer, as ASGI: it goes on for as long as somebody listens."""

    def __init__(
        self,
        feed: Feed,
        listener: Listener,
        visitor: Visitor,
        subscription: Subscription,
        begun: Begun,
        headers: Mapping[str, str],
    ) -> None:
        self.feed = feed
        self.listener = listener
        self.visitor = visitor
        self.subscription = subscription
        self.begun = begun
        self._headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state: dict[str, Any] = scope["state"]
        flow = _Events(self, send)
        leaving = asyncio.create_task(self._notice(receive))
        try:
            if not state.get(HEADLESS_ASKED):
                state[LIVE] = True
                state.get(BECOME_LIVE, _nothing)()
            await send({"type": "http.response.start", "status": 200, "headers": self._headers})
            if not state.get(HEADLESS_ASKED):
                await flow.say(self._first())
                reason = await flow.run()
                if reason not in (OVER, "left"):
                    await flow.say(ending(reason))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            leaving.cancel()
            self.feed.leave(self.listener)

    def _first(self) -> bytes:
        """Where the client is, even if nothing ever happens, and when it may come back; and the state of its job."""
        mark = marked(self.begun.cursor, self.begun.epoch)
        frame = self.begun.snapshot
        return b"retry: %d\nid: %b\n\n%b" % (
            retry_ms(len(self.feed)),
            mark.encode(),
            frame.sse if frame is not None else b"",
        )

    async def _notice(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.listener.end("left")


def _nothing() -> None:
    """Where no connection of ours is behind it."""


class LiveResponse(Response[None]):
    """Holds the stream until the framework has put its headers together."""

    def __init__(self, opened: Any) -> None:
        super().__init__(None, media_type=SSE, headers={"X-Accel-Buffering": "no"})  # or a proxy keeps it all back
        self._opened = opened

    def to_asgi_response(self, *_: Any, **__: Any) -> Any:
        return self._opened({"Content-Type": SSE, **self.headers})


async def live(request: AnyConnection, services: Services, asked: Asked, after: str | None) -> Response[None]:
    """The answer to whoever wants to listen; 204 where there is no more to come, at which EventSource stops asking.

    Raises:
        TooManyStreams: as many listen as may.
        Rejection: as begin().
    """
    who: Admitted = request.scope["state"]["admitted"]
    asked = replace(asked, owner=who.owner)
    begun = await begin(services, asked, after)
    if begun.is_over:
        return Response(None, status_code=204)
    credential: Credential | None = who.principal.credential
    visitor = Visitor(services, request.headers)
    listener = services.feed.join("sse", credential)
    subscription = subscribe(services.feed, listener, asked, begun)
    return LiveResponse(lambda headers: EventStream(services.feed, listener, visitor, subscription, begun, headers))


class JobStreamController(Controller):
    path = "/v1/jobs"
    opt = takes(PERMISSION, owned=jobs.AGGREGATE)
    tags = ("jobs",)

    @get("/{job_id:uuid}/events", summary="One job as it happens", produces=(SSE,), refuses=(409, 503))
    async def events(
        self,
        request: Request[Any, Any, Any],
        services: Parts,
        job_id: FromPath[UUID],
        after: AfterPosition = None,
        last_event_id: LastEventId = None,
    ) -> Response[None]:
        """Its state, as the event `snapshot`, then each of its events; after the last one the event `end`. With a
        cursor, whatever came past that instead; 204 where the job is over and nothing did.
        """
        return await live(request, services, Asked(job=job_id), last_event_id or after)


class BatchStreamController(Controller):
    path = "/v1/batches"
    opt = takes(PERMISSION, owned=batches.AGGREGATE)
    tags = ("jobs",)

    @get("/{batch_id:uuid}/events", summary="The jobs of a batch as they happen", produces=(SSE,), refuses=(409, 503))
    async def events(
        self,
        request: Request[Any, Any, Any],
        services: Parts,
        batch_id: FromPath[UUID],
        after: AfterPosition = None,
        last_event_id: LastEventId = None,
    ) -> Response[None]:
        """From now on, or past a cursor."""
        return await live(request, services, Asked(batch=batch_id), last_event_id or after)


class StreamController(Controller):
    path = "/v1/stream"
    opt = takes(PERMISSION)
    tags = ("jobs",)

    @get("/", summary="Jobs as they happen", produces=(SSE,), refuses=(403, 404, 409, 422, 503))
    async def jobs(
        self,
        request: Request[Any, Any, Any],
        services: Parts,
        job: FromQuery[UUID | None] = None,
        batch: FromQuery[UUID | None] = None,
        kind: Annotated[str | None, QueryParameter(max_length=64)] = None,
        after: AfterPosition = None,
        last_event_id: LastEventId = None,
    ) -> Response[None]:
        """Events of all jobs that one may see and that fit what is given, from now on, or past a cursor. With `job`
        as `GET /v1/jobs/{id}/events`.
        """
        return await live(request, services, Asked(job=job, batch=batch, kind=kind), last_event_id or after)
