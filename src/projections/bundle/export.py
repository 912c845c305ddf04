"""Writing a bundle while the service runs.

The read models are dumped first, at whatever position P they reflect then; after that one waits until a checkpoint of
at least P is signed, and streams the log up to that checkpoint. So everything in the bundle is signed for, and the rows
are those of a position that it holds.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import LiteralString
from uuid import UUID

import msgspec
from msgspec import Struct
from psycopg_pool import AsyncConnectionPool

from ...adapters.event_store.codec import Recorded
from ...adapters.event_store.leaf import microseconds
from ...adapters.event_store.reader import PAGE_EVENTS_MAX, LogHole, read_page
from ...adapters.event_store.tree import read_tree
from ...adapters.objects.port import ObjectDamaged, ObjectMissing, ObjectStore
from ...domain.kernel import Invalid, Rejection
from ...domain.merkle import Frontier
from . import snapshot as snapshots
from .blobs import TOMBSTONES, named_by
from .format import (
    BLOBS,
    CHECKPOINTS,
    CHUNK_BYTES_WANTED,
    CHUNK_EVENTS_MAX,
    FRONTIER,
    QUARANTINE,
    README,
    BlobLine,
    BundleWriter,
    CheckpointLine,
    EventLine,
    FrontierPart,
    Manifest,
    blob_name,
    chunk_name,
    raw,
    read_model_name,
)
from .snapshot import Snapshot

SIGNED_POLL_S = 0.05
SIGNED_WAIT_S = 10.0
NOTES_PER_PAGE = 1_000
COPY_BYTES = 1024**2

HEAD: LiteralString = "SELECT coalesce((SELECT max(position) FROM events), 0), epoch FROM log_head"
SIGNED: LiteralString = "SELECT min(tree_size) FROM notary_checkpoints WHERE tree_size >= %s"
NOTES: LiteralString = (
    "SELECT tree_size, note FROM notary_checkpoints WHERE tree_size > %s AND tree_size <= %s"
    " ORDER BY tree_size LIMIT %s"
)
DELETED: LiteralString = "SELECT min(position) FROM events WHERE stream_id = %s AND topic = ANY (%s)"

PARTIAL = "rows can only be checked against the log from position 1"
LATER = "the read models reflect position {}, which is past the end of the bundle"

README_TEXT = """\
An audit bundle of Sightline: the event log, and what it takes to check it anywhere.

  sightline audit verify BUNDLE --public-key KEY [--witness CHECKPOINT_FILE]

checks all of it with the public key alone. By hand:

1. The SHA-256 of every member is in manifest.json.
2. events/*.ndjson are the log in order: positions without a gap, each stream's versions too. `metadata` and `data` are
   the exact bytes that were stored; where one begins with a quote it is a JSON string around the exact bytes.
3. A leaf of the Merkle tree (RFC 9162) is the SHA-256 of 0x00 and seven fields, each after its length (4 bytes,
   big-endian): position (8 bytes, big-endian), stream id (16 bytes), version (8), topic, metadata, data, and
   recorded_at in whole microseconds since 1970 UTC (8). A node is the SHA-256 of 0x01, left, right.
4. checkpoints.ndjson are signed notes (C2SP): origin, tree size, root in base64, then the Ed25519 signature. The root
   over that many leaves must be the signed one. Where the log begins past 1, frontier.json is the tree before it.
5. read_models/*.ndjson are what folding the events up to `read_models_position` comes to; streams that
   quarantine.ndjson names are folded to just before the position that stands there.
6. blobs.ndjson are the objects that the rows name. A `tombstone` is the position of the event that deleted one.

Personal data is sealed: ciphertext here, as in the log.
"""


class NotSigned(Rejection):
    """No checkpoint reaches far enough: the notary is not running, or far behind."""

    code = "not_signed_yet"


class Range(Struct, frozen=True):
    """What a bundle holds of the log.

    Attributes:
        before: the tree of everything before its first event.
        last: the position of its last event, which is the size of a signed checkpoint.
    """

    before: Frontier
    last: int
    epoch: UUID

    @property
    def first(self) -> int:
        return self.before.size + 1


@asynccontextmanager
async def prepared(
    pool: AsyncConnectionPool,
    *,
    first: int = 1,
    last: int | None = None,
    objects: ObjectStore | None = None,
    wait_s: float = SIGNED_WAIT_S,
) -> AsyncIterator["Export"]:
    """A bundle that can be written: all that may be refused has been looked at, and the rows lie on disk.

    Args:
        pool: of the database.
        first: the position to begin at.
        last: the position to go to at least, by default all that is in the log now; the bundle goes on to the first
            signed checkpoint there or past it.
        objects: where objects are read from, if their bytes are wanted too.
        wait_s: for that checkpoint.

    Raises:
        Invalid: the log has no such positions.
        NotSigned: nobody signed so far in time.
        LogHole, TreeDamaged: the log is damaged, or its tree.
        psycopg.Error, OSError: the database failed, or there is no space for the rows.
    """
    with ExitStack() as stack:
        async with pool.connection() as connection:
            found = await (await connection.execute(HEAD)).fetchone()
        assert found is not None
        head, epoch = found
        wanted = head if last is None else last
        if not 1 <= first <= wanted <= head:
            raise Invalid(f"positions {first} to {wanted} are not in the log, which ends at {head}")
        taken: Snapshot | str = PARTIAL
        if first == 1:
            taken = await snapshots.take(pool, stack)
            if last is None:
                wanted = max(wanted, taken.position)
        signed = await _signed(pool, wanted, wait_s)
        if isinstance(taken, Snapshot) and taken.position > signed:
            taken = LATER.format(taken.position)
        before = await _tree_before(pool, first)
        yield Export(pool, Range(before, signed, epoch), taken, objects)


async def _signed(pool: AsyncConnectionPool, position: int, wait_s: float) -> int:
    """The size of the first checkpoint that covers `position`, waited for."""
    deadline_s = time.monotonic() + wait_s
    while True:
        async with pool.connection() as connection:
            row = await (await connection.execute(SIGNED, (position,))).fetchone()
        if row is not None and row[0] is not None:
            return int(row[0])
        if time.monotonic() > deadline_s:
            raise NotSigned(f"no signed checkpoint reaches position {position}; is the notary running?")
        await asyncio.sleep(SIGNED_POLL_S)


async def _tree_before(pool: AsyncConnectionPool, first: int) -> Frontier:
    async with pool.connection() as connection:
        return (await read_tree(connection, first - 1)).frontier()


async def _pages(pool: AsyncConnectionPool, first: int, last: int) -> AsyncIterator[list[Recorded]]:
    """The log from `first` to `last`, a page at a time; the next one is read while the caller works on this one."""

    async def read(after: int) -> list[Recorded]:
        async with pool.connection() as connection:
            return await read_page(connection, after=after, limit=min(PAGE_EVENTS_MAX, last - after))

    after = first - 1
    reading = asyncio.create_task(read(after)) if after < last else None
    try:
        while reading is not None:
            page = await reading
            if not page:
                raise LogHole(f"the log ends at {after}, though {last} was signed")
            after = page[-1].position
            reading = asyncio.create_task(read(after)) if after < last else None
            yield page
    finally:
        if reading is not None:
            reading.cancel()
            await asyncio.wait({reading})


class Export:
    """Writes one bundle, once.

    Attributes:
        range: what it holds of the log.
    """

    def __init__(
        self, pool: AsyncConnectionPool, held: Range, snapshot: Snapshot | str, objects: ObjectStore | None
    ) -> None:
        self.range = held
        self._pool, self._snapshot, self._objects = pool, snapshot, objects
        self._writer = BundleWriter()
        self._tombstones: dict[UUID, int] = {}
        self._chunks = self._events = self._bytes = 0  # chunks so far, and what is in the open one
        self._origin = ""

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The bundle's bytes. Memory is bounded by a page of the log, and a line of the directory per member.

        Raises:
            LogHole: the log is damaged.
            psycopg.Error, ObjectStoreError, OSError: a part failed; what was written until then is no bundle.
        """
        try:
            async for part in self._parts():
                yield part
        finally:
            self._writer.abandon()

    async def _parts(self) -> AsyncIterator[bytes]:
        writer = self._writer
        writer.add(README, README_TEXT.encode())
        async for page in _pages(self._pool, self.range.first, self.range.last):
            await asyncio.to_thread(self._write_events, page)
            yield writer.take()
        writer.open(CHECKPOINTS)
        async for lines in self._notes():
            writer.write(lines)
            yield writer.take()
        if self.range.before.size:
            nodes = [node.hex() for node in self.range.before.nodes]
            writer.add(FRONTIER, msgspec.json.encode(FrontierPart(self.range.before.size, nodes)))
        if isinstance(self._snapshot, Snapshot):
            async for part in self._rows(self._snapshot):
                yield part
        writer.end()
        yield writer.finish(self._manifest())

    def _manifest(self) -> Manifest:
        rows = isinstance(self._snapshot, Snapshot)
        return Manifest(
            origin=self._origin,
            epoch=self.range.epoch,
            first=self.range.first,
            last=self.range.last,
            exported_at=datetime.now(UTC),
            read_models_position=self._snapshot.position if isinstance(self._snapshot, Snapshot) else None,
            read_models_absent=self._snapshot if isinstance(self._snapshot, str) else "",
            with_blobs=rows and self._objects is not None,
            members=self._writer.members,
        )

    def _write_events(self, page: list[Recorded]) -> None:
        encode = msgspec.json.Encoder().encode
        lines: list[bytes] = []
        for recorded in page:
            if self._events == 0:
                self._chunks += 1
                self._writer.open(chunk_name(self._chunks))
            line = encode(line_of(recorded))
            lines += (line, b"\n")
            self._events += 1
            self._bytes += len(line) + 1
            if recorded.topic in TOMBSTONES:
                self._tombstones.setdefault(recorded.stream_id, recorded.position)
            if self._events == CHUNK_EVENTS_MAX or self._bytes >= CHUNK_BYTES_WANTED:
                self._writer.write(b"".join(lines))
                self._events = self._bytes = 0
                lines = []
        if lines:
            self._writer.write(b"".join(lines))

    async def _notes(self) -> AsyncIterator[bytes]:
        """The signed checkpoints of the range; the one just before its first event is the first."""
        after = self.range.first - 2
        while after < self.range.last:
            async with self._pool.connection() as connection:
                cursor = await connection.execute(NOTES, (after, self.range.last, NOTES_PER_PAGE))
                found = [CheckpointLine(*row) for row in await cursor.fetchall()]
            if not found:
                return
            after = found[-1].tree_size
            self._origin = found[-1].note.partition("\n")[0]
            yield msgspec.json.Encoder().encode_lines(found)

    async def _rows(self, snapshot: Snapshot) -> AsyncIterator[bytes]:
        writer = self._writer
        for name, file in snapshot.rows.items():
            writer.open(read_model_name(name))
            file.seek(0)
            while block := file.read(COPY_BYTES):
                await asyncio.to_thread(writer.write, block)
                yield writer.take()
        writer.add(QUARANTINE, msgspec.json.Encoder().encode_lines(snapshot.quarantine))
        if self._objects is not None:
            async for part in self._objects_of(snapshot, self._objects):
                yield part
        writer.open(BLOBS)
        encode = msgspec.json.Encoder().encode_lines
        for lines in _blobs(snapshot, self._tombstones):
            await asyncio.to_thread(writer.write, encode(lines))
            yield writer.take()

    async def _objects_of(self, snapshot: Snapshot, objects: ObjectStore) -> AsyncIterator[bytes]:
        """The bytes of every object that is not deleted, each content once; one that is missing is left out."""
        for lines in _blobs(snapshot, self._tombstones):
            for line in lines:
                if line.tombstone is not None or blob_name(line.sha256) in self._writer.members:
                    continue
                try:
                    async with objects.open(line.key) as chunks:
                        self._writer.open(blob_name(line.sha256), stored=True)
                        async for chunk in chunks:
                            await asyncio.to_thread(self._writer.write, chunk)
                            yield self._writer.take()
                except ObjectDamaged:
                    pass  # What could be read is in the bundle, and its digest will say that it is wrong.
                except ObjectMissing:
                    await self._look_for_tombstone(line.stream_id)
                self._writer.end()

    async def _look_for_tombstone(self, stream_id: UUID) -> None:
        """An object that was deleted after the last event of the bundle."""
        async with self._pool.connection() as connection:
            row = await (await connection.execute(DELETED, (stream_id, sorted(TOMBSTONES)))).fetchone()
        if row is not None and row[0] is not None:
            self._tombstones[stream_id] = int(row[0])


def line_of(recorded: Recorded) -> EventLine:
    """An event as it stands in a bundle."""
    return EventLine(
        recorded.position,
        recorded.stream_id,
        recorded.originator_version,
        recorded.topic,
        microseconds(recorded.recorded_at),
        raw(recorded.metadata),
        raw(recorded.state),
    )


def _blobs(snapshot: Snapshot, tombstones: Mapping[UUID, int]) -> Iterator[list[BlobLine]]:
    """The objects that the rows name, in portions."""
    for name, model in snapshots.models().items():
        decode = msgspec.json.Decoder(model.row).decode
        snapshot.rows[name].seek(0)
        while lines := snapshot.rows[name].readlines(COPY_BYTES):
            found = (named_by(decode(line), tombstones) for line in lines if b'"object_key"' in line)
            yield [blob for blobs in found for blob in blobs]
