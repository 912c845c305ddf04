"""A batch as the parameters of one statement: PostgreSQL's binary arrays, one per column of `append_batch`.

Each command renders its own elements when it is queued, while another batch is in flight; making the batch is then a
join per column. Against JSON parameters, which the server parses twice, a batch of 128 takes a quarter less time
(docs/decisions/0001-binary-arrays.md).

Format: https://www.postgresql.org/docs/current/protocol-overview.html#PROTOCOL-FORMAT-CODES, array_recv in the
server's source: dimensions, has-null, element oid, then per dimension length and lower bound, then the elements, each
preceded by its length in bytes (−1: null).
"""

import re
import struct
from collections.abc import Sequence
from struct import Struct as Packer
from typing import Any
from uuid import UUID

from eventsourcing.persistence import StoredEvent
from msgspec import Struct

from .codec import NotStorable

STATEMENT = (
    b"SELECT n, outcome, position, result, recorded_at FROM append_batch("
    b"%s, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b)"
)


# What a loser's row may carry: a guard's key or a receipt's result. The server sends rows before it commits, so an
# answer larger than a socket's buffer would keep the log locked for as long as a stopped process does not read it;
# 513 rows (BATCH_EVENTS_MAX, and a command that is never split) of 330 bytes fitted into a unix socket's, of 360 not.
RETURNED_BYTES_MAX = 200


class Expectation(Struct, frozen=True):
    """A stream was at `version` (0: absent) when the decision was made.

    Attributes:
        writes: the command appends to it; otherwise it only looked.
    """

    stream_id: UUID
    version: int
    writes: bool


class Guard(Struct, frozen=True):
    """Move the counter `key` by `delta`; an upward move may not pass `limit`."""

    key: str
    delta: int
    limit: int | None = None


class Append(Struct, frozen=True, kw_only=True):
    """What one command wants appended, all of it or nothing.

    Attributes:
        events: of one or more streams, each stream's versions following its expectation.
        metadata: the envelope of all of them, JSON.
        metadata_each: or one for each event, where they were caused by different things.
        result: what the receipt keeps for a repeat of the command, JSON, at most RETURNED_BYTES_MAX.
    """

    command_id: UUID
    expectations: Sequence[Expectation]
    events: Sequence[StoredEvent]
    metadata: bytes
    guards: Sequence[Guard] = ()
    result: bytes | None = None
    metadata_each: Sequence[bytes] | None = None


class Rendered(Struct, frozen=True):
    """An Append as the wire wants it.

    Attributes:
        columns: the elements of every column but the ordinals, each with its length.
        counts: expectations, guards and events, which is how often the ordinal is repeated.
        writes, touches: the streams that it writes, and all that it rests on; bytes, since a UUID hashes slowly.
    """

    command_id: UUID
    columns: tuple[bytes, ...]
    counts: tuple[int, int, int]
    writes: frozenset[bytes]
    touches: frozenset[bytes]
    size_bytes: int


class _Array:
    """One binary array parameter; a subclass per element type, since psycopg picks the oid by class."""

    __slots__ = ("payload",)

    def __init__(self, payload: bytes) -> None:
        self.payload = payload


class _Uuids(_Array):
    pass


class _Integers(_Array):
    pass


class _Bigints(_Array):
    pass


class _Booleans(_Array):
    pass


class _Texts(_Array):
    pass


class _Jsons(_Array):
    pass


# Class, oid of the array, oid of the element: pg_type.dat
_OIDS: dict[type[_Array], tuple[int, int]] = {
    _Uuids: (2951, 2950),
    _Integers: (1007, 23),
    _Bigints: (1016, 20),
    _Booleans: (1000, 16),
    _Texts: (1009, 25),
    _Jsons: (199, 114),
}

_length = Packer(">i").pack
_empty = Packer(">iii").pack
_header = Packer(">iiiii").pack
_uuid = Packer(">i16s").pack
_integer = Packer(">ii").pack
_bigint = Packer(">iq").pack
_boolean = Packer(">i?").pack
_NULL = _length(-1)

# The columns in the order of append_batch's parameters; "n" stands for the ordinal of x, g and e.
_COLUMNS: tuple[type[_Array] | str, ...] = (
    _Uuids, _Integers, _Jsons,
    "x", _Uuids, _Bigints, _Booleans,
    "g", _Texts, _Bigints, _Bigints,
    "e", _Uuids, _Bigints, _Texts, _Jsons, _Jsons,
)  # fmt: skip


def render(append: Append) -> Rendered:
    """The elements of `append`.

    Raises:
        NotStorable: a number is beyond bigint, a text beyond UTF-8, a result or key beyond RETURNED_BYTES_MAX.
    """
    returned = [append.result or b"", *(one.key for one in append.guards)]
    if max(map(len, returned)) > RETURNED_BYTES_MAX:
        raise NotStorable(f"a result or a counter's key is more than {RETURNED_BYTES_MAX} bytes")
    try:
        columns = _columns(append)
    except (struct.error, UnicodeEncodeError) as error:
        raise NotStorable(f"beyond what the log can hold: {error}") from error
    return Rendered(
        command_id=append.command_id,
        columns=columns,
        counts=(len(append.expectations), len(append.guards), len(append.events)),
        writes=frozenset([one.stream_id.bytes for one in append.expectations if one.writes]),
        touches=frozenset([one.stream_id.bytes for one in append.expectations]),
        size_bytes=sum(map(len, columns)),
    )


def _columns(append: Append) -> tuple[bytes, ...]:
    expectations, guards, events = append.expectations, append.guards, append.events
    return (
        _uuid(16, append.command_id.bytes),
        _integer(4, len(events)),
        _NULL if append.result is None else _text(append.result),
        b"".join([_uuid(16, one.stream_id.bytes) for one in expectations]),
        b"".join([_bigint(8, one.version) for one in expectations]),
        b"".join([_boolean(1, one.writes) for one in expectations]),
        b"".join([_text(one.key.encode()) for one in guards]),
        b"".join([_bigint(8, one.delta) for one in guards]),
        b"".join([_NULL if one.limit is None else _bigint(8, one.limit) for one in guards]),
        b"".join([_uuid(16, one.originator_id.bytes) for one in events]),  # type: ignore[union-attr]  # UUIDs only
        b"".join([_bigint(8, one.originator_version) for one in events]),
        b"".join([_text(one.topic.encode()) for one in events]),
        b"".join([_text(one.state) for one in events]),
        b"".join(map(_text, append.metadata_each or [append.metadata] * len(events))),
    )


def _text(data: bytes) -> bytes:
    return _length(len(data)) + data


def parameters(epoch: UUID, batch: Sequence[Rendered]) -> list[Any]:
    """The parameters of STATEMENT for a batch, commands numbered from 1 in its order."""
    columns = iter(zip(*(one.columns for one in batch), strict=True))
    counts = dict(zip("xge", zip(*(one.counts for one in batch), strict=True), strict=True))
    length = len(batch)  # of the columns before the first ordinal, which are the commands'
    found: list[Any] = [epoch]
    for kind in _COLUMNS:
        if isinstance(kind, str):
            ordinals = b"".join([_integer(4, n) * count for n, count in enumerate(counts[kind], 1)])
            length = sum(counts[kind])
            found.append(_array(_Integers, length, ordinals))
        else:
            found.append(_array(kind, length, b"".join(next(columns))))
    return found


def _array(kind: type[_Array], length: int, elements: bytes) -> _Array:
    oid = _OIDS[kind][1]
    if not length:
        return kind(_empty(0, 0, oid))
    return kind(_header(1, 1, oid, length, 1) + elements)


# The statement as `channel` prepares it: numbered parameters, and their types.
PREPARED = b"".join(
    text + b"$%d" % number if number < len(_COLUMNS) + 2 else text
    for number, text in enumerate(re.split(rb"%[sb]", STATEMENT), 1)
)
OIDS = [2950, *(_OIDS[_Integers if isinstance(kind, str) else kind][0] for kind in _COLUMNS)]


def payloads(epoch: UUID, batch: Sequence[Rendered]) -> list[bytes]:
    """The parameters as `channel` sends them."""
    _, *arrays = parameters(epoch, batch)
    return [epoch.bytes, *(array.payload for array in arrays)]
