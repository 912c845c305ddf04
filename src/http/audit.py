"""For auditors: the log itself, and what came of what."""

from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from litestar import Controller, Request, Response, get
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import Stream
from msgspec import Struct

from ..adapters.event_store.codec import Recorded
from ..adapters.event_store.reader import EventFilter
from ..domain.access import NotAllowed, roles_with
from ..domain.events import AGGREGATES, kind_of
from ..domain.kernel import Aggregate, NotFound
from ..projections import lineage
from .auth import takes
from .cloud_events import BATCH, LINES, cloud_event
from .cursors import marked, unmarked
from .manners import CURSOR, POSITION_MAX, Limit, Listing, Parts, Reads, found, listed
from .moments import TIME, moment_of
from .nouns import EventView
from .services import Services

NDJSON = "application/x-ndjson"
NDJSON_PAGE_EVENTS = 500
DEPTH_DEFAULT = 10

# As paths name them, plural or not, and as edges do.
TRACED = {kind: kind for kind in (*AGGREGATES, "artifact")} | {f"{kind}s": kind for kind in (*AGGREGATES, "artifact")}

Position = Annotated[str, QueryParameter(pattern=CURSOR, description="Events past this position, or cursor.")]
Word = Annotated[str | None, QueryParameter(min_length=1, max_length=200)]
Moment = Annotated[str | None, QueryParameter(max_length=40, schema_extra={"one_of": [TIME]})]


class TraceNode(Struct, frozen=True):
    """Attributes:
    kind: asset, session, job, model or artifact.
    """

    id: UUID
    kind: str


class TraceView(Struct, frozen=True):
    """The graph around one thing. An edge leads from what went in to what it went into, or from job to artifact."""

    root: TraceNode
    direction: str
    depth: int
    nodes: list[TraceNode]
    edges: list[lineage.LineageEdge]


def _owned(path: Mapping[str, Any]) -> Aggregate[Any]:
    """Who sees only what is theirs begins at something that is somebody's: from a model one reaches everybody's jobs.

    Raises:
        NotAllowed: it belongs to all, or it is an artifact, which is known by its job.
    """
    aggregate = AGGREGATES.get(_traced(path["kind"]))
    if aggregate is None or aggregate.owner is None:
        raise NotAllowed("a trace of yours begins at an asset, a session or a job", roles_with("trace:read", "any"))
    return aggregate


TRACES = takes("trace:read", owned=_owned)


class AuditController(Controller):
    path = "/v1"
    opt = takes("audit:read")
    tags = ("audit",)

    @get("/events", summary="The log", produces=("application/json", NDJSON, BATCH, LINES), refuses=(409,))
    async def events(
        self,
        request: Request[Any, Any, Any],
        services: Parts,
        after: Position = "0",
        limit: Limit = 100,
        event_type: Annotated[
            str | None, QueryParameter(name="type", max_length=100, description="A tag, or a prefix such as `job.`")
        ] = None,
        stream: FromQuery[UUID | None] = None,
        actor: Word = None,
        correlation: Word = None,
        since: Moment = None,
        until: Moment = None,
    ) -> Response[Listing[EventView]] | Stream:
        """Events in order, each with its envelope. With `Accept: application/x-ndjson` all of them past `after`, one
        a line, up to where the log ended when the request came; `limit` then does not count. As CloudEvents with
        `application/cloudevents-batch+json` (a page, an array) or `application/x-ndjson; profile=cloudevents`.
        """
        wanted = EventFilter(
            topic=event_type,
            stream_id=stream,
            actor=actor,
            correlation_id=correlation,
            since=None if since is None else moment_of("since", since),
            until=None if until is None else moment_of("until", until),
        )
        head = await services.store.reader.head()
        past = unmarked(after, head.epoch)
        accept = request.headers.get("accept", "")
        clouds = "cloudevents" in accept
        view: Callable[[Recorded], Any] = partial(cloud_event, epoch=head.epoch) if clouds else EventView.of
        if NDJSON in accept:
            lines = _lines(services, wanted, view, after=past, until=head.position)
            media_type = LINES if clouds else NDJSON
            return Stream(lines, media_type=media_type, headers={"Event-Position": str(head.position)})
        recorded = await services.store.reader.search(wanted, after=past, limit=limit)
        cursor = marked(recorded[-1].position, head.epoch) if recorded else None
        answer: Response[Any] = listed(
            request, [view(one) for one in recorded], head.position, limit=limit, cursor=cursor
        )
        if clouds:
            return Response(answer.content.items, media_type=BATCH, headers=answer.headers)
        return answer

    @get("/trace/{kind:str}/{root_id:uuid}", summary="What came of it, what it came from", limit="trace", **TRACES)
    async def trace(
        self,
        services: Parts,
        reads: Reads,
        kind: FromPath[str],
        root_id: FromPath[UUID],
        direction: FromQuery[Literal["ancestors", "descendants", "both"]] = "both",
        depth: Annotated[int, QueryParameter(ge=1, le=lineage.DEPTH_MAX)] = DEPTH_DEFAULT,
    ) -> Response[TraceView]:
        root = TraceNode(root_id, _traced(kind))
        edges: dict[tuple[UUID, UUID, str], lineage.LineageEdge] = {}
        position = POSITION_MAX
        for forward in (True, False):
            if direction == ("ancestors" if forward else "descendants"):
                continue
            reached, at = await lineage.trace(reads, root_id, forward=forward, depth=depth)
            position = min(position, at)
            edges |= {(edge.src, edge.dst, edge.relation): edge for edge in reached}
        nodes = {edge.src: edge.src_kind for edge in edges.values()}
        nodes |= {edge.dst: edge.dst_kind for edge in edges.values()}
        if nodes.get(root_id, root.kind) != root.kind or (not nodes and not await _exists(services, root)):
            raise NotFound(f"no such {root.kind}")
        body = TraceView(
            root,
            direction,
            depth,
            [TraceNode(*node) for node in ({root_id: root.kind} | nodes).items()],
            sorted(edges.values(), key=lambda edge: edge.position),
        )
        return found(body, position)


def _traced(kind: str) -> str:
    found_kind = TRACED.get(kind.replace("-", "_"))
    if found_kind is None:
        raise NotFound("no such kind")
    return found_kind


async def _exists(services: Services, node: TraceNode) -> bool:
    """An artifact is known by its edge alone; everything else by its stream."""
    if node.kind not in AGGREGATES:
        return False
    first = await services.store.reader.stream(node.id, limit=1)
    return bool(first) and kind_of(first[0].topic) == node.kind


async def _lines(
    services: Services, wanted: EventFilter, view: Callable[[Recorded], Struct], *, after: int, until: int
) -> AsyncIterator[bytes]:
    encode = msgspec.json.Encoder().encode
    while after < until:
        page = await services.store.reader.search(wanted, after=after, limit=NDJSON_PAGE_EVENTS)
        due = [recorded for recorded in page if recorded.position <= until]
        if due:
            yield b"".join(encode(view(recorded)) + b"\n" for recorded in due)
        if len(page) < NDJSON_PAGE_EVENTS:
            return
        after = page[-1].position
