"""The log of a bundle against its signatures: no gap, and at every checkpoint the root that was signed."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from struct import error as PackError  # noqa: N812  # it is a class, whatever its module calls it

import msgspec
from msgspec import Struct

from ...adapters.event_store.leaf import leaf
from ...adapters.notes import Checkpoint, NoteRefused, verify_checkpoint
from ...domain.merkle import Frontier, leaf_hash
from .format import (
    CHECKPOINTS,
    FRONTIER,
    BundleReader,
    BundleRefused,
    CheckpointLine,
    EventLine,
    FrontierPart,
    chunk_name,
    exact,
)

Progress = Callable[[str, int, int], None]  # what is done, how many of it, of how many


class Chain(Struct, frozen=True):
    """Attributes:
    checkpoints: how many signed heads the log was held against, the witness aside.
    signed: the last position that one of them covers.
    """

    streams: int
    checkpoints: int
    signed: int


class Head(Struct, frozen=True):
    """What the root must be over the first `size` leaves, and who says so."""

    size: int
    root: bytes
    name: str


def check(reader: BundleReader, public_key: str, witness: str | None, progress: Progress) -> Chain:
    """Raises:
    BundleRefused: with the first position that is wrong; where only a root says so, the first that may be.
    """
    manifest = reader.manifest
    heads = _signed_heads(reader, public_key)
    if not heads:
        raise BundleRefused("there is no signed checkpoint in it")
    expected = list(heads)
    if witness is not None:
        outside = _verified(witness, public_key, "the witness")
        if outside.origin != manifest.origin:
            raise BundleRefused(f"the witness is of {outside.origin!r}, the bundle of {manifest.origin!r}")
        if outside.tree_size < manifest.first - 1:
            raise BundleRefused(f"the witness ends at {outside.tree_size}, where this bundle has not begun")
        expected.append(Head(outside.tree_size, outside.root, "the witness"))
    walk = _Walk(_frontier(reader), sorted(expected, key=lambda head: head.size))
    for lines in _chunks(reader):
        walk.take(lines)
        progress("hashed", walk.position - manifest.first + 1, manifest.last - manifest.first + 1)
    if walk.position != manifest.last:
        raise BundleRefused(f"the log ends before {manifest.last}, where the manifest does", walk.position + 1)
    if walk.ahead is not None:
        size = walk.ahead.size
        raise BundleRefused(f"{walk.ahead.name} is of {size} events; the bundle ends before", walk.position + 1)
    return Chain(walk.streams, len(heads), heads[-1].size)


def _signed_heads(reader: BundleReader, public_key: str) -> list[Head]:
    manifest = reader.manifest
    heads: list[Head] = []
    least = manifest.first - 1
    for line in reader.structs(CHECKPOINTS, CheckpointLine):
        name = f"the checkpoint of {line.tree_size}"
        signed = _verified(line.note, public_key, name)
        if signed.tree_size != line.tree_size:
            raise BundleRefused(f"{name} is one of {signed.tree_size}")
        if signed.origin != manifest.origin:
            raise BundleRefused(f"{name} is of {signed.origin!r}, the bundle of {manifest.origin!r}")
        if signed.tree_size < least:
            raise BundleRefused(f"{name} stands after one of {least}, or before the bundle's beginning")
        least = signed.tree_size + 1
        heads.append(Head(signed.tree_size, signed.root, name))
    return heads


def _verified(note: str, public_key: str, name: str) -> Checkpoint:
    try:
        return verify_checkpoint(note, public_key)
    except NoteRefused as error:
        raise BundleRefused(f"{name}: {error}") from error


def _frontier(reader: BundleReader) -> Frontier:
    """The tree before the first event; a false one gives false roots."""
    before = reader.manifest.first - 1
    if before == 0:
        return Frontier()
    try:
        part = msgspec.json.decode(reader.read(FRONTIER), type=FrontierPart)
        if part.size != before:
            raise BundleRefused(f"{FRONTIER} is a tree of {part.size}, not of {before}")
        return Frontier(part.size, [bytes.fromhex(node) for node in part.nodes])
    except (msgspec.MsgspecError, ValueError) as error:
        raise BundleRefused(f"{FRONTIER}: {error}") from error


def _chunks(reader: BundleReader) -> Iterator[list[EventLine]]:
    """Events by chunk. A digest that is not the manifest's is told last: what is wrong inside says more."""
    spoiled: str | None = None
    position = reader.manifest.first
    for name, data in chunks(reader, position):
        if hashlib.sha256(data).hexdigest() != reader.manifest.members[name].sha256:
            spoiled = spoiled or name
        lines, fault = decoded(name, data, position)
        position += len(lines)
        yield lines
        if fault is not None:
            raise fault
    if spoiled is not None:
        raise BundleRefused(f"{spoiled} is not what the manifest says")


def chunks(reader: BundleReader, position: int) -> Iterator[tuple[str, bytes]]:
    """The members of the log in order; `position` is where they begin."""
    for number, name in enumerate(reader.names("events/"), 1):
        if name != chunk_name(number):
            raise BundleRefused(f"{chunk_name(number)} is missing", position if number == 1 else None)
        yield name, reader.read(name, digest=False)


_decode = msgspec.json.Decoder(EventLine)


def decoded(name: str, data: bytes, position: int) -> tuple[list[EventLine], BundleRefused | None]:
    """The events of a chunk whose first one is at `position`, up to the first line that is none."""
    try:
        return _decode.decode_lines(data), None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        found: list[EventLine] = []
        for line in data.split(b"\n"):
            try:
                found.append(_decode.decode(line))
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                return found, BundleRefused(f"{name}: {error}", position + len(found))
        return found, BundleRefused(f"{name} is not made of lines", position)


class _Walk:
    """From event to event, and at each head a look at the root."""

    def __init__(self, tree: Frontier, heads: Sequence[Head]) -> None:
        self._tree = tree
        self._first = tree.size + 1
        self._heads = heads
        self._passed = 0  # heads
        self._versions: dict[bytes, int] = {}
        self.position = tree.size
        self._look()

    @property
    def streams(self) -> int:
        return len(self._versions)

    @property
    def ahead(self) -> Head | None:
        """The first head that was not reached."""
        return self._heads[self._passed] if self._passed < len(self._heads) else None

    def take(self, lines: Sequence[EventLine]) -> None:
        hashes, fault = self._hashes(lines)
        done = 0
        until = self._tree.size + len(hashes)
        while self._passed < len(self._heads) and self._heads[self._passed].size <= until:
            more = self._heads[self._passed].size - self._tree.size
            self._tree.extend(hashes[done : done + more])
            done += more
            self._look()
        self._tree.extend(hashes[done:])
        if fault is not None:
            raise fault

    def _look(self) -> None:
        """Compare the roots of all heads of this size."""
        while self._passed < len(self._heads) and self._heads[self._passed].size == self._tree.size:
            head = self._heads[self._passed]
            if self._tree.root() != head.root:
                before = self._heads[self._passed - 1].size if self._passed else self._first - 1
                if before == self._tree.size:
                    raise BundleRefused(f"{head.name} and {self._heads[self._passed - 1].name} sign different logs")
                where = f"from here to {head.size}" if before + 1 < head.size else "here"
                raise BundleRefused(f"{head.name} signs another log: something {where} is not as it was", before + 1)
            self._passed += 1

    def _hashes(self, lines: Sequence[EventLine]) -> tuple[list[bytes], BundleRefused | None]:
        """Leaf hashes of events that follow the last one, up to the first whose position or version does not follow,
        and what is wrong with that one: a root before it may be wrong as well, which comes first.
        """
        hashes: list[bytes] = []
        versions, whole = self._versions, self._first == 1
        for position, line in enumerate(lines, self.position + 1):
            if line.position != position:
                return hashes, BundleRefused(f"{line.position} stands where {position} belongs", position)
            stream = line.stream_id.bytes
            known = versions.get(stream)
            # A stream may have begun before the bundle did.
            if line.version != known + 1 if known is not None else whole and line.version != 1:
                said = f"version {line.version} of stream {line.stream_id} does not follow {known or 'nothing'}"
                return hashes, BundleRefused(said, position)
            versions[stream] = line.version
            try:
                hashed = leaf_hash(
                    leaf(
                        position,
                        line.stream_id,
                        line.version,
                        line.topic,
                        exact(line.metadata),
                        exact(line.data),
                        line.recorded_at_us,
                    )
                )
            except (PackError, ValueError, msgspec.MsgspecError) as error:
                return hashes, BundleRefused(f"not an event of ours: {error}", position)
            hashes.append(hashed)
            self.position = position
        return hashes, None
