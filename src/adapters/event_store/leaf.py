"""What the notary hashes of an event: every stored byte of it, each field behind its length, so that no two events
share a leaf.

`schema/functions/notary_leaf_hashes.sql` says the same in SQL; a test holds them together. The form is a contract:
a change to it would break every proof ever given out.
"""

from datetime import UTC, datetime, timedelta
from struct import Struct as Packed
from uuid import UUID

from ...domain.merkle import leaf_hash
from .codec import Recorded

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

# position, stream, version, and the length of the topic: lengths are 4 bytes, numbers 8 with a sign, all big-endian.
_HEAD = Packed(">IqI16sIqI")
_LENGTH = Packed(">I")
_TIME = Packed(">Iq")


def leaf(
    position: int,
    stream_id: UUID,
    version: int,
    topic: str,
    metadata: bytes,
    data: bytes,
    recorded_at_us: int,
) -> bytes:
    """The leaf of one event: its fields, in this order; `metadata` and `data` exactly as they are stored."""
    tag = topic.encode()
    return b"".join(
        (
            _HEAD.pack(8, position, 16, stream_id.bytes, 8, version, len(tag)),
            tag,
            _LENGTH.pack(len(metadata)),
            metadata,
            _LENGTH.pack(len(data)),
            data,
            _TIME.pack(8, recorded_at_us),
        )
    )


def microseconds(moment: datetime) -> int:
    """Whole microseconds since 1970 UTC, exactly."""
    return (moment - EPOCH) // MICROSECOND


def hash_of(recorded: Recorded) -> bytes:
    """The leaf hash of an event as the log returns it."""
    return leaf_hash(
        leaf(
            recorded.position,
            recorded.stream_id,
            recorded.originator_version,
            recorded.topic,
            recorded.metadata,
            recorded.state,
            microseconds(recorded.recorded_at),
        )
    )
