"""Events as CloudEvents 1.0 (https://github.com/cloudevents/spec), for tools that know no log but that of the field.

The envelope travels as extension attributes, whose names are lower-case letters alone. `position` and
`streamversion` are strings, as `id` is: an Integer of CloudEvents ends at 2^31.
"""

from datetime import datetime
from uuid import UUID

import msgspec
from msgspec import Struct

from ..adapters.event_store.codec import Recorded

BATCH = "application/cloudevents-batch+json"
# The format has no lines of its own; a profile of NDJSON says what each of them is.
LINES = "application/x-ndjson; profile=cloudevents"


class CloudEvent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event.

    Attributes:
        id: its position.
        source: the log, one epoch of it; with `id` unique for ever.
        type: the stored tag.
        subject: its stream.
    """

    specversion: str
    id: str
    source: str
    type: str
    subject: str
    time: datetime
    datacontenttype: str
    position: str
    streamversion: str
    # An attribute of CloudEvents is absent or has at least one character.
    actor: str = ""
    correlationid: str = ""
    causationid: str = ""
    requestid: str = ""
    data: msgspec.Raw


def cloud_event(recorded: Recorded, epoch: UUID) -> CloudEvent:
    envelope = recorded.envelope
    return CloudEvent(
        specversion="1.0",
        id=str(recorded.position),
        source=f"urn:sightline:log:{epoch}",
        type=recorded.topic,
        subject=str(recorded.stream_id),
        time=recorded.recorded_at,
        datacontenttype="application/json",
        position=str(recorded.position),
        streamversion=str(recorded.originator_version),
        actor=envelope.actor,
        correlationid=envelope.correlation_id,
        causationid=envelope.causation_id,
        requestid=envelope.request_id,
        data=msgspec.Raw(recorded.state),
    )
