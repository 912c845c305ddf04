"""What every noun can be asked: what happened to it, and what it was at some time before now."""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

import msgspec
from litestar import Controller, Request, Response, get
from litestar.params import FromPath
from msgspec import Struct

from ..adapters.event_store.codec import Recorded
from ..domain.events import kind_of
from ..domain.kernel import Aggregate, NotFound
from .cursors import marked, unmarked
from .manners import CURSOR, POSITION_MAX, AfterVersion, At, Limit, Parts, found, next_link
from .moments import moment_of
from .services import Services


class EventView(Struct, frozen=True):
    """One event and its envelope.

    Attributes:
        position: in the log, without a gap.
        version: in its stream.
        type: the stored tag.
        causation_id: the command or the event that led to it.
    """

    position: int
    stream_id: UUID
    version: int
    type: str
    recorded_at: datetime
    actor: str
    correlation_id: str
    causation_id: str
    request_id: str
    data: msgspec.Raw

    @classmethod
    def of(cls, recorded: Recorded) -> "EventView":
        envelope = recorded.envelope
        return cls(
            position=recorded.position,
            stream_id=recorded.stream_id,
            version=recorded.originator_version,
            type=recorded.topic,
            recorded_at=recorded.recorded_at,
            actor=envelope.actor,
            correlation_id=envelope.correlation_id,
            causation_id=envelope.causation_id,
            request_id=envelope.request_id,
            data=msgspec.Raw(recorded.state),
        )


class History(Struct, frozen=True):
    """A stream, and what it comes to.

    Attributes:
        version: of the stream then.
        state: what its events fold to, all of them, whatever part of them this page shows.
        next: the version to pass as `after`.
    """

    kind: str
    id: UUID
    version: int
    state: dict[str, Any]
    items: list[EventView]
    next: str | None = None


class Then(Struct, frozen=True):
    """A stream as it was.

    Attributes:
        state: of its aggregate.
        position: that was asked for, at most the log's end.
        epoch: of the log.
    """

    state: Any
    version: int
    position: int
    epoch: UUID
    events: Sequence[Recorded]


class NounController(Controller):
    """The base of every noun's controller."""

    aggregate: ClassVar[Aggregate[Any]]

    @get("/{stream_id:uuid}/history", summary="What happened, and what it came to")
    async def history(
        self,
        request: Request[Any, Any, Any],
        services: Parts,
        stream_id: FromPath[UUID],
        at: At = None,
        after: AfterVersion = "0",
        limit: Limit = 100,
    ) -> Response[History]:
        return await history_of(request, services, self.aggregate, stream_id, at=at, after=after, limit=limit)


async def history_of(
    request: Request[Any, Any, Any],
    services: Services,
    aggregate: Aggregate[Any],
    stream_id: UUID,
    *,
    at: str | None,
    after: str,
    limit: int,
) -> Response[History]:
    """A page of a stream's events, with the state that all of them up to `at` fold to.

    Raises:
        NotFound: there was no such stream then.
        EpochChanged: `after`, or `at`, is of the log before a restore.
    """
    then = await as_of(services, aggregate, stream_id, at)
    past = unmarked(after, then.epoch)
    items = [EventView.of(recorded) for recorded in then.events if recorded.originator_version > past][:limit]
    more = bool(items) and items[-1].version < then.version
    cursor = marked(items[-1].version, then.epoch) if more else None
    state = msgspec.to_builtins(then.state)
    body = History(aggregate.kind, stream_id, then.version, state, items, cursor)
    answer = found(body, then.position, version=then.version)
    if cursor is not None:
        answer.headers["Link"] = next_link(request, cursor)
    return answer


async def as_of(services: Services, aggregate: Aggregate[Any], stream_id: UUID, at: str | None) -> Then:
    """A stream folded up to a position or a time; without one, to its end.

    Raises:
        NotFound: there was no such stream then.
        FieldsRefused: `at` is neither.
        EpochChanged: `at` is of the log before a restore.
    """
    reader = services.store.reader
    head = await reader.head()
    position = head.position if at is None else min(head.position, await _position(services, at, head.epoch))
    events = await reader.stream(stream_id, up_to_position=position)
    if not events or kind_of(events[0].topic) != aggregate.kind:
        raise NotFound(f"no such {aggregate.kind}" + ("" if at is None else " then"))
    state = aggregate.fold(aggregate.initial, map(services.store.mapper.event, events))
    return Then(state, events[-1].originator_version, position, head.epoch, events)


async def _position(services: Services, at: str, epoch: UUID) -> int:
    if re.fullmatch(CURSOR, at):
        return unmarked(at, epoch)
    if at.isascii() and at.isdigit():
        return POSITION_MAX
    moment = moment_of("at", at, kinds="a position or an RFC 3339 time")
    return await services.store.reader.position_at(moment)
