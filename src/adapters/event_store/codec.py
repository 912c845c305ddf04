"""Events as they are stored, and back: the `eventsourcing` library's StoredEvent, Notification and Mapper on msgspec.

The payload is exact JSON text, the event's own tag included; an event class is found by that tag, so that renaming a
class changes nothing that was ever written.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from eventsourcing.persistence import Mapper, MapperDeserialisationError, Notification, StoredEvent, Transcoder
from msgspec import Struct

from ...domain.kernel import Caller
from ...domain.upcasts import UPCASTS, Upcast, upcast

# A NUL escape that is not itself escaped: PostgreSQL keeps it in `json`, and then no `->>` can read the value.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def holds_nul(text: bytes) -> bool:
    """Whether a string in this JSON text holds NUL."""
    return b"\\u0000" in text and _NUL.search(text) is not None


class NotStorable(ValueError):
    """The text holds what PostgreSQL cannot: NUL, or half of a surrogate pair."""

    code = "not_storable"


class Metadata(Struct, frozen=True, omit_defaults=True):
    """The envelope around each event: who, on whose behalf, because of what."""

    actor: str
    correlation_id: str
    causation_id: str
    command_id: str
    request_id: str = ""


class Fact(Struct, frozen=True):
    """One event in its place; what the library calls a domain event."""

    originator_id: UUID
    originator_version: int
    event: Any


@dataclass(frozen=True)
class Recorded(Notification):
    """A stored event as the log returns it; `id` is its position.

    Attributes:
        metadata: the envelope, JSON.
        recorded_at: when the batch was appended, the database's clock, µs.
    """

    metadata: bytes
    recorded_at: datetime

    @property
    def position(self) -> int:
        return self.id

    @property
    def stream_id(self) -> UUID:
        return self.originator_id  # type: ignore[return-value]  # the library allows text ids; this log has UUIDs only

    @property
    def envelope(self) -> Metadata:
        return _decode_metadata(self.metadata)


_decode_metadata = msgspec.json.Decoder(Metadata).decode


class JsonTranscoder(Transcoder):
    """msgspec's JSON, checked for what the database cannot hold."""

    def __init__(self) -> None:
        self._encode = msgspec.json.Encoder().encode

    def encode(self, obj: Any) -> bytes:
        """JSON text.

        Raises:
            NotStorable: NUL or a lone surrogate in a string.
        """
        try:
            text = self._encode(obj)
        except UnicodeEncodeError as error:
            raise NotStorable("a string holds half of a surrogate pair") from error
        if holds_nul(text):
            raise NotStorable("a string holds a NUL character")
        return text

    def decode(self, data: bytes) -> Any:
        return msgspec.json.decode(data)


class EventMapper(Mapper[UUID]):
    """Facts to stored events and back, by tag; what was stored under an earlier generation's tag comes back as the
    last one.
    """

    def __init__(self, events: Mapping[str, type[Struct]], upcasts: Mapping[str, Upcast] = UPCASTS) -> None:
        super().__init__(transcoder=JsonTranscoder())
        self._events = events
        self._upcasts = upcasts
        self._tags: dict[type, str] = {kind: tag for tag, kind in events.items()}
        self._decoders = {tag: msgspec.json.Decoder(kind) for tag, kind in events.items()}

    def to_stored_event(self, domain_event: Any) -> StoredEvent:
        """`domain_event` is a Fact.

        Raises:
            NotStorable: see JsonTranscoder.
        """
        return StoredEvent(
            originator_id=domain_event.originator_id,
            originator_version=domain_event.originator_version,
            topic=self._tags[type(domain_event.event)],
            state=self.transcoder.encode(domain_event.event),
        )

    def to_domain_event(self, stored_event: StoredEvent) -> Any:
        """The Fact that was stored.

        Raises:
            MapperDeserialisationError: no class has this tag, or the payload does not fit it.
        """
        return Fact(
            stored_event.originator_id,  # type: ignore[arg-type]  # UUIDs only, as above
            stored_event.originator_version,
            self.event(stored_event),
        )

    def event(self, stored_event: StoredEvent) -> Any:
        """The event alone, for whoever folds a stream."""
        decoder = self._decoders.get(stored_event.topic)
        try:
            return decoder.decode(stored_event.state) if decoder is not None else self._upcast(stored_event)
        except (msgspec.MsgspecError, KeyError, TypeError, AttributeError) as error:
            raise MapperDeserialisationError(
                f"{stored_event.topic} of {stored_event.originator_id} at version "
                f"{stored_event.originator_version}: {error}"
            ) from error

    def _upcast(self, stored_event: StoredEvent) -> Any:
        if stored_event.topic not in self._upcasts:
            raise MapperDeserialisationError(f"no event has the tag {stored_event.topic!r}")
        payload = msgspec.json.decode(stored_event.state, type=dict[str, Any])
        tag, payload = upcast(stored_event.topic, payload, self._upcasts)
        return msgspec.convert(payload, self._events[tag])

    def metadata(self, caller: Caller) -> bytes:
        """The envelope of every event that this caller's command says."""
        return self.transcoder.encode(
            Metadata(
                actor=caller.actor,
                correlation_id=caller.correlation_id,
                causation_id=caller.causation_id,
                command_id=str(caller.command_id),
                request_id=caller.request_id,
            )
        )
