"""A bundle taken apart, so that a test can do to it what a forger would, and put it together again."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from sightline.adapters.event_store.codec import EventMapper
from sightline.adapters.event_store.leaf import leaf
from sightline.domain.events import EVENTS
from sightline.domain.merkle import Frontier, leaf_hash
from sightline.projections import catalogue
from sightline.projections.bundle import content, snapshot
from sightline.projections.bundle.blobs import TOMBSTONES, named_by
from sightline.projections.bundle.format import (
    BLOBS,
    CHECKPOINTS,
    MANIFEST,
    README,
    BundleReader,
    BundleWriter,
    CheckpointLine,
    EventLine,
    Manifest,
    chunk_name,
    exact,
    read_model_name,
)
from sightline.projections.folding import Fold
from sightline.projections.replay import canonical_row

_lines = msgspec.json.Encoder().encode_lines


class Unpacked(Struct):
    """Attributes:
    others: every other member, as it is.
    """

    manifest: Manifest
    events: list[EventLine]
    checkpoints: list[CheckpointLine]
    others: dict[str, bytes]

    @classmethod
    def of(cls, packed: bytes) -> "Unpacked":
        with BundleReader(io.BytesIO(packed)) as reader:
            names = reader.manifest.members
            chunks = [reader.read(name) for name in names if name.startswith("events/")]
            others = {name: reader.read(name) for name in names if not name.startswith("events/")}
            return cls(
                reader.manifest,
                [line for chunk in chunks for line in msgspec.json.Decoder(EventLine).decode_lines(chunk)],
                msgspec.json.Decoder(CheckpointLine).decode_lines(others.pop(CHECKPOINTS)),
                others,
            )

    def copy(self) -> "Unpacked":
        return Unpacked(self.manifest, list(self.events), list(self.checkpoints), dict(self.others))

    def packed(self, *, last: int | None = None) -> bytes:
        """With a manifest whose digests fit, whatever was done to the members."""
        writer = BundleWriter()
        writer.add(README, self.others.get(README, b""))
        writer.add(chunk_name(1), _lines(self.events))
        writer.add(CHECKPOINTS, _lines(self.checkpoints))
        for name, data in self.others.items():
            if name != README:
                writer.add(name, data)
        return writer.finish(replace(self.manifest, last=last or len(self.events), members=writer.members))

    def renumbered(self) -> None:
        """Positions and versions as they would be, had the events been these from the beginning."""
        versions: dict[Any, int] = {}
        for index, line in enumerate(self.events):
            versions[line.stream_id] = versions.get(line.stream_id, 0) + 1
            self.events[index] = replace(line, position=index + 1, version=versions[line.stream_id])

    def refolded(self, quarantined: Mapping[UUID, int] | None = None) -> None:
        """Rows and blobs as the events now come to; those that cannot be folded are left as they are."""
        position = min(self.manifest.read_models_position or 0, len(self.events))
        self.manifest = replace(self.manifest, read_models_position=position)
        fold = Fold(EventMapper(EVENTS), catalogue.READ_MODELS, catalogue.EDGE_MODELS)
        tombstones: dict[Any, int] = {}
        for line in self.events:
            if line.topic in TOMBSTONES:
                tombstones.setdefault(line.stream_id, line.position)
            if line.position <= position and line.position < (quarantined or {}).get(line.stream_id, position + 1):
                fold.take(content._recorded(line))
        blobs = []
        for name in snapshot.models():
            rows: dict[Any, Any] = fold.rows[name] if name in fold.rows else fold.edges[name]
            ordered = [rows[key] for key in sorted(rows)]
            self.others[read_model_name(name)] = b"".join(canonical_row(row) + b"\n" for row in ordered)
            blobs += [blob for row in ordered for blob in named_by(row, tombstones)]
        self.others[BLOBS] = _lines(blobs)

    def roots(self) -> list[bytes]:
        """Of the first n events as they are now, for each n."""
        tree = Frontier()
        found = [tree.root()]
        for line in self.events:
            tree.append(hashed(line))
            found.append(tree.root())
        return found


def hashed(line: EventLine) -> bytes:
    return leaf_hash(
        leaf(
            line.position,
            line.stream_id,
            line.version,
            line.topic,
            exact(line.metadata),
            exact(line.data),
            line.recorded_at_us,
        )
    )


def repacked(packed: bytes, change: Callable[[dict[str, bytes]], None]) -> bytes:
    """The members changed, and the manifest left as it was: what a forger gets who forgets it."""
    with BundleReader(io.BytesIO(packed)) as reader:
        members = {name: reader.read(name) for name in reader.manifest.members}
        manifest = reader.read(MANIFEST, digest=False)
    change(members)
    return written(members, manifest)


def written(members: dict[str, bytes], manifest: bytes) -> bytes:
    """A ZIP of these members and this manifest, whether or not they fit."""
    writer = BundleWriter()
    for name, data in members.items():
        writer.add(name, data)
    writer.add(MANIFEST, manifest)
    writer._zip.close()
    return writer.take()


def rows_of(unpacked: Unpacked, name: str) -> Sequence[Any]:
    """The rows of a read model, as values."""
    return [msgspec.json.decode(line) for line in unpacked.others[read_model_name(name)].splitlines()]
