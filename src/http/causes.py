"""The chain of cause: from any event back to the request that began it, and forward to what came of it.

Each event's envelope says why it was written: `event:<position>` where a worker or the clock reacted to an event,
`command:<id>` where somebody asked. Back is a walk from one to the next. Forward has no index to use, since one would
cost every append; effects come after their cause, so one pass over what follows finds them all, up to a bound.
"""

import re
from typing import Annotated, Literal

from litestar import Controller, Response, get
from litestar.params import FromPath, FromQuery, QueryParameter
from msgspec import Struct

from ..adapters.event_store.codec import Recorded
from ..adapters.event_store.reader import Reader
from ..domain.kernel import NotFound
from .auth import takes
from .manners import POSITION_MAX, Parts, found
from .nouns import EventView

DEPTH_MAX = 100
DEPTH_DEFAULT = 20
EVENTS_MAX = 200
REACH_DEFAULT = 100_000
REACH_MAX = 1_000_000
SCAN_EVENTS = 10_000
COMMAND_EVENTS_MAX = 512  # as many as one batch of the writer holds

_EVENT = re.compile(r"event:([1-9][0-9]{0,18})")


class CausesView(Struct, frozen=True):
    """Attributes:
    events: the event itself first; back, each after its effect; forward, in the order of the log.
    origin: back, what the last of them names as its reason: `command:<id>` is the request. Forward null.
    scanned_to: forward, the position up to which effects were looked for.
    complete: whether there is nothing further that way, up to the log's end.
    """

    position: int
    direction: str
    events: list[EventView]
    origin: str | None
    scanned_to: int
    complete: bool


class CausesController(Controller):
    path = "/v1/events"
    opt = takes("audit:read")
    tags = ("audit",)

    @get("/{position:int}/causes", operation_id="event_causes", summary="Why it happened, or what came of it")
    async def causes(
        self,
        services: Parts,
        position: FromPath[int],
        direction: FromQuery[Literal["back", "forward"]] = "back",
        depth: Annotated[int, QueryParameter(ge=1, le=DEPTH_MAX, description="Steps from the event.")] = DEPTH_DEFAULT,
        reach: Annotated[
            int, QueryParameter(ge=1, le=REACH_MAX, description="Positions past the event to look through; forward.")
        ] = REACH_DEFAULT,
    ) -> Response[CausesView]:
        """Back to the request that began it, or forward to the events that it led to: those that name it, or an event
        reached before, as their reason, and those of its own command that follow it. At most 200 events.
        """
        reader = services.store.reader
        head = (await reader.head()).position
        if not 1 <= position <= min(head, POSITION_MAX):
            raise NotFound("no such event")
        (start,) = await reader.at([position])
        walked = (
            await _back(reader, start, depth)
            if direction == "back"
            else await _forward(reader, start, depth, until=min(head, position + reach), head=head)
        )
        return found(walked, head)


async def _back(reader: Reader, start: Recorded, depth: int) -> CausesView:
    events = [start]
    while True:
        reason = events[-1].envelope.causation_id
        named = _EVENT.fullmatch(reason)
        cause = int(named[1]) if named else 0
        # A cause lies before its effect; anything else would be a circle, or nonsense.
        if not 1 <= cause < events[-1].position:
            complete = True
            break
        if len(events) > depth:
            complete = False
            break
        events += await reader.at([cause])
    return CausesView(
        start.position, "back", [EventView.of(one) for one in events], reason, events[-1].position, complete
    )


async def _forward(reader: Reader, start: Recorded, depth: int, *, until: int, head: int) -> CausesView:
    depths = {start.position: 0}
    for sibling in await reader.page(after=start.position, limit=COMMAND_EVENTS_MAX):
        if sibling.envelope.command_id != start.envelope.command_id or len(depths) >= EVENTS_MAX:
            break
        depths[sibling.position] = 1
    scanned, cut = start.position, False
    while scanned < until and len(depths) < EVENTS_MAX:
        end = min(until, scanned + SCAN_EVENTS)
        for position, reason in await reader.caused_by_events(after=scanned, until=end):
            named = _EVENT.fullmatch(reason)
            above = depths.get(int(named[1])) if named else None
            if above is None or position in depths:
                continue
            if above >= depth or len(depths) >= EVENTS_MAX:
                cut = True
                continue
            depths[position] = above + 1
        scanned = end
    events = await reader.at(sorted(depths))
    return CausesView(
        start.position,
        "forward",
        [EventView.of(one) for one in events],
        None,
        scanned,
        scanned == head and not cut and len(depths) < EVENTS_MAX,
    )
