"""What a bundle says beside the log: read models that replaying must come to, and the objects that they name."""

import hashlib
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct

from ...adapters.event_store.codec import EventMapper, Recorded
from ...adapters.event_store.leaf import EPOCH
from ...domain.events import EVENTS
from .. import catalogue
from ..folding import Fold, Poison
from ..replay import canonical_row
from . import snapshot
from .blobs import TOMBSTONES, named_by
from .chain import Progress, chunks, decoded
from .format import (
    BLOBS,
    QUARANTINE,
    README,
    BlobLine,
    BundleReader,
    BundleRefused,
    EventLine,
    QuarantineLine,
    blob_name,
    exact,
    read_model_name,
)


class Content(Struct, frozen=True, kw_only=True):
    """Attributes:
    rows: how many each read model has, all of them equal to the replay; none where the bundle has no rows.
    quarantined: streams that the read models stopped at.
    blobs: objects that the rows name.
    deleted: those whose tombstone is in the log.
    deleted_later: those whose tombstone is said to be past the bundle's end, where nothing proves it.
    hashed: contents in the bundle, each of them what its name says.
    """

    rows: dict[str, int] | None = None
    quarantined: int = 0
    blobs: int = 0
    deleted: int = 0
    deleted_later: int = 0
    hashed: int = 0


def check(reader: BundleReader, progress: Progress) -> Content:
    """Raises:
    BundleRefused: rows, blobs or members that are not what the log comes to.
    """
    manifest = reader.manifest
    if reader.has(README):
        reader.read(README)
    names = {read_model_name(name) for name in snapshot.models()}
    if manifest.read_models_position is None:
        _none_of(reader, ("read_models/", "blobs/", BLOBS, QUARANTINE))
        return Content()
    if manifest.first != 1 or not 0 <= manifest.read_models_position <= manifest.last:
        raise BundleRefused("its rows are of a position that it does not hold")
    for name in reader.names("read_models/"):
        if name not in names:
            raise BundleRefused(f"{name} is no read model")
    quarantine = {line.stream_id: line.position for line in reader.structs(QUARANTINE, QuarantineLine)}
    fold, tombstones = _replayed(reader, quarantine, progress)
    rows = {}
    blobs: list[BlobLine] = []
    for name, model in snapshot.models().items():
        folded: dict[Any, Any] = fold.rows[name] if name in fold.rows else fold.edges[name]
        ordered = [folded[key] for key in sorted(folded, key=_order)]
        _compare(reader, name, model.key, ordered)
        rows[name] = len(ordered)
        blobs += (blob for row in ordered for blob in named_by(row, tombstones))
        progress("compared", len(rows), len(names))
    later = _compare_blobs(reader, blobs)
    return Content(
        rows=rows,
        quarantined=len(quarantine),
        blobs=len(blobs),
        deleted=sum(blob.tombstone is not None for blob in blobs),
        deleted_later=len(later),
        hashed=_hash_blobs(reader, blobs, later, progress),
    )


def _none_of(reader: BundleReader, names: tuple[str, ...]) -> None:
    for name in names:
        for found in reader.names(name):
            raise BundleRefused(f"{found} is there, though the manifest has no position for it")


def _order(key: Any) -> Any:
    """What sorts as the key does, faster: a UUID compares in Python."""
    return key.int if isinstance(key, UUID) else tuple(map(_order, key)) if isinstance(key, tuple) else key


def _replayed(reader: BundleReader, quarantine: Mapping[UUID, int], progress: Progress) -> tuple[Fold, dict[UUID, int]]:
    """Rows as of the read models' position, and what deleted which stream, to the end of the log."""
    manifest = reader.manifest
    fold = Fold(EventMapper(EVENTS), catalogue.READ_MODELS, catalogue.EDGE_MODELS)
    tombstones: dict[UUID, int] = {}
    until = manifest.read_models_position or 0
    for lines in _lines(reader):
        for line in lines:
            if line.topic in TOMBSTONES:
                tombstones.setdefault(line.stream_id, line.position)
            if line.position > until or line.position >= quarantine.get(line.stream_id, until + 1):
                continue
            try:
                fold.take(_recorded(line))
            except Poison as error:
                raise BundleRefused(f"cannot be replayed: {error.error}", line.position) from error
        progress("replayed", min(lines[-1].position if lines else 0, until), until)
    return fold, tombstones


def _lines(reader: BundleReader) -> Iterator[list[EventLine]]:
    position = reader.manifest.first
    for name, data in chunks(reader, position):
        lines, fault = decoded(name, data, position)
        yield lines
        if fault is not None:
            raise fault
        position += len(lines)


def _recorded(line: EventLine) -> Recorded:
    try:
        return Recorded(
            line.stream_id,
            line.version,
            line.topic,
            exact(line.data),
            line.position,
            exact(line.metadata),
            EPOCH + timedelta(microseconds=line.recorded_at_us),
        )
    except (OverflowError, ValueError) as error:
        raise BundleRefused(f"not an event of ours: {error}", line.position) from error


_encode = msgspec.json.Encoder(order="sorted").encode


def _compare(reader: BundleReader, name: str, key: tuple[str, ...], ordered: list[Any]) -> None:
    """The dumped rows of a read model against the folded ones, both in the order of keys."""
    member = read_model_name(name)
    number = 0
    for lines in reader.lines(member):
        for line in lines:
            if number >= len(ordered):
                raise BundleRefused(f"{member} has more rows than the {len(ordered)} that the log comes to")
            row = ordered[number]
            # The first text is right for nearly all rows, and a third of the second's work.
            if line != _encode(row) and line != canonical_row(row):
                said = ", ".join(str(getattr(row, column)) for column in key)
                raise BundleRefused(
                    f"{member}, line {number + 1}, is not what the log up to {row.position} comes to ({said})"
                )
            number += 1
    if number < len(ordered):
        raise BundleRefused(f"{member} has {number} rows; the log comes to {len(ordered)}")


def _compare_blobs(reader: BundleReader, expected: list[BlobLine]) -> set[str]:
    """Digests of the objects that are said to have been deleted after the end of the bundle."""
    later: set[str] = set()
    number = 0
    for line in reader.structs(BLOBS, BlobLine):
        if number >= len(expected):
            raise BundleRefused(f"{BLOBS} has more lines than the {len(expected)} objects that the rows name")
        wanted = expected[number]
        number += 1
        if line.tombstone is not None and line.tombstone > reader.manifest.last and wanted.tombstone is None:
            later.add(line.sha256)
            line = BlobLine(line.key, line.sha256, line.size_bytes, line.stream_id)  # noqa: PLW2901  # as it was then
        if line != wanted:
            raise BundleRefused(f"{BLOBS}, line {number}, is not what the log says of {wanted.key}")
    if number < len(expected):
        raise BundleRefused(f"{BLOBS} has {number} lines; the rows name {len(expected)} objects")
    return later


def _hash_blobs(reader: BundleReader, blobs: list[BlobLine], later: set[str], progress: Progress) -> int:
    """How many contents are there, each of them whole; with blobs none may be missing."""
    wanted = {blob.sha256: blob for blob in blobs if blob.tombstone is None}
    present = reader.names("blobs/")
    for done, name in enumerate(present, 1):
        sha256 = name.removeprefix("blobs/")
        if sha256 not in wanted:
            raise BundleRefused(f"{name} is named by nothing in the log")
        hashed = hashlib.sha256()
        for block in reader.blocks(name):
            hashed.update(block)
        if hashed.hexdigest() != sha256:
            raise BundleRefused(f"the object {wanted[sha256].key} is damaged: its digest is {hashed.hexdigest()}")
        progress("blobs", done, len(present))
    if reader.manifest.with_blobs:
        for sha256, blob in wanted.items():
            if sha256 not in later and not reader.has(blob_name(sha256)):
                raise BundleRefused(f"the object {blob.key}, of stream {blob.stream_id}, is neither there nor deleted")
    return len(present)
