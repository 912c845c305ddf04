"""A stream that was set aside comes back: its events are folded again from the first one, in one transaction.

The checkpoint is locked meanwhile, so that the projector stands between two pages and goes on with the stream included.
"""

from uuid import UUID

import psycopg
from msgspec import Struct

from ..adapters.event_store.codec import EventMapper
from ..domain.kernel import NotFound, Rejection
from . import catalogue, quarantine
from .projection import CHECKPOINT, EdgeModel
from .rebuild import CannotFold, refold, stream_events
from .tables import Target


class StillPoisoned(Rejection):
    """The stream cannot be folded yet, and stays set aside."""

    code = "stream_still_poisoned"


class Resumed(Struct, frozen=True):
    """Attributes:
    events: that were folded.
    position: that the read models reflect.
    """

    stream_id: UUID
    events: int
    position: int


async def resume(connection: psycopg.AsyncConnection, mapper: EventMapper, stream_id: UUID) -> Resumed:
    """Fold a quarantined stream again into every read model, and lift its quarantine.

    Raises:
        NotFound: the stream is not set aside.
        StillPoisoned: it cannot be folded; nothing was changed.
    """
    try:
        async with connection.transaction():
            cursor = await connection.execute(
                "SELECT position FROM projection_checkpoints WHERE name = %s FOR UPDATE", (CHECKPOINT,)
            )
            row = await cursor.fetchone()
            assert row is not None
            if not await quarantine.positions(connection, [stream_id]):
                raise NotFound("no such stream is set aside")
            events = await stream_events(connection, stream_id, row[0])
            for model in catalogue.ALL_MODELS:
                if isinstance(model, EdgeModel) or events[0].topic.partition(".")[0] in model.kinds:
                    await refold(connection, mapper, model, Target.live(model), stream_id, events)
            await connection.execute("DELETE FROM projection_quarantine WHERE stream_id = %s", (stream_id,))
    except CannotFold as error:
        raise StillPoisoned(error.detail) from error
    except psycopg.Error as error:
        if connection.closed or not quarantine.is_poison(error):
            raise
        raise StillPoisoned(str(error).split("\n", 1)[0]) from error
    await quarantine.count(connection)
    return Resumed(stream_id, len(events), row[0])
