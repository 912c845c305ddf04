"""The log's Merkle tree: grown from events, kept in tiles, and read back for proofs.

A tile is 256 neighbouring hashes, as in C2SP's tlog-tiles: at tile level 0 leaf hashes, at level n + 1 the roots of
256 tiles of level n. Only complete tiles are stored, once and for all; the last one of each level, which is not, is
computed from what is below it: at most 255 events, and 255 roots a level.
"""

import asyncio
from collections.abc import Sequence
from hashlib import sha256
from typing import LiteralString

from msgspec import Struct
from psycopg import AsyncConnection
from psycopg.abc import Buffer

from ...domain.merkle import (
    HASH_BYTES,
    Frontier,
    RangeRoot,
    complete_subtrees,
    consistency_proof,
    inclusion_proof,
    root_of,
)
from .reader import LogHole

TILE_LEVELS = 8  # of the tree, in one tile
TILE_HASHES = 1 << TILE_LEVELS
_COPY_HEAD_BYTES = 19  # the format's signature and two numbers, before the first row
_COPY_FIELDS_BYTES = 2  # the number of fields, before each row
_POSITION = slice(4, 12)

# PostgreSQL's binary COPY puts the length, 4 bytes big-endian, before each field, and sends numbers big-endian: a row
# of it *is* a leaf (see leaf.py), with no field decoded. Its times count from 2000; the sum moves that to 1970 (hours,
# since a day is not 24 of them in every zone). Hashed in SQL the same took 3.1 µs an event of the server's time, so
# 0.7 there and the rest here, in a process that may yield to others.
LEAVES: LiteralString = (
    "COPY (SELECT position, stream_id, version, topic, metadata, data, recorded_at + interval '262968 hours'"
    " FROM events WHERE position > %s AND position <= %s ORDER BY position) TO STDOUT (FORMAT binary)"
)
TILE: LiteralString = "SELECT hashes FROM notary_tiles WHERE level = %s AND index = %s"
ROOTS: LiteralString = "SELECT root FROM notary_tiles WHERE level = %s AND index >= %s AND index < %s ORDER BY index"


class TreeDamaged(Exception):
    """A tile is missing, or does not fit what is below or above it."""


class Tile(Struct, frozen=True):
    level: int
    index: int
    root: bytes
    hashes: bytes


class Tree:
    """The tree as far as its growth needs it: of each tile level, the last tile.

    Attributes:
        edges: by level, the hashes of the tile that is not complete, at most 255.
    """

    def __init__(self, size: int = 0, edges: Sequence[Sequence[bytes]] = ()) -> None:
        self.size = size
        self.edges = [list(edge) for edge in edges]

    def extend(self, hashes: Sequence[bytes]) -> list[Tile]:
        """Add leaves by their hashes; the tiles that are complete by that."""
        tiles: list[Tile] = []
        row, level, index = list(hashes), 0, self.size
        self.size += len(row)
        while row:
            if level == len(self.edges):
                self.edges.append([])
            edge = [*self.edges[level], *row]
            index >>= TILE_LEVELS
            row = []
            for begin in range(0, len(edge) - TILE_HASHES + 1, TILE_HASHES):
                one = edge[begin : begin + TILE_HASHES]
                row.append(root_of(one))
                tiles.append(Tile(level, index + len(row) - 1, row[-1], b"".join(one)))
            self.edges[level] = edge[len(row) * TILE_HASHES :]
            level += 1
        return tiles

    def frontier(self) -> Frontier:
        nodes: list[bytes] = []
        for edge in reversed(self.edges):
            part = Frontier()
            part.extend(edge)
            nodes += part.nodes
        return Frontier(self.size, nodes)

    def root(self) -> bytes:
        return self.frontier().root()


async def leaf_hashes(connection: AsyncConnection, *, after: int, until: int) -> list[bytes]:
    """The leaf hashes of the events at positions past `after`, up to `until`.

    Raises:
        LogHole: one of them is not there.
    """
    hashes: list[bytes] = []
    async with connection.cursor() as cursor, cursor.copy(LEAVES, (after, until)) as copy:
        position, skip = after, _COPY_HEAD_BYTES + _COPY_FIELDS_BYTES
        while position < until:
            leaf = bytes((_arrived(connection) or await copy.read())[skip:])
            skip = _COPY_FIELDS_BYTES
            position += 1
            if not leaf or int.from_bytes(leaf[_POSITION]) != position:  # without a leaf it is the end
                raise LogHole(f"position {position} is missing from the log")
            hashes.append(sha256(b"\x00" + leaf).digest())  # merkle.leaf_hash, once less called
        async for _ in copy:
            pass
    return hashes


def _arrived(connection: AsyncConnection) -> Buffer | None:
    """The next row of the copy if it has come. Asking libpq for it saves the wait that psycopg begins for each few of
    them, which was half of the notary's time.
    """
    size_bytes, row = connection.pgconn.get_copy_data(1)
    if size_bytes == 0:
        connection.pgconn.consume_input()
        size_bytes, row = connection.pgconn.get_copy_data(1)
    return row if size_bytes > 0 else None


async def read_tree(connection: AsyncConnection, size: int) -> Tree:
    """The tree of the first `size` events, from its tiles and the events after the last of them.

    Raises:
        LogHole, TreeDamaged: an event or a tile is not there.
    """
    reader = TileReader(connection, size)
    edges = []
    level = 0
    while size >> TILE_LEVELS * level:
        count = size >> TILE_LEVELS * level
        edges.append(await reader.hashes(level, count >> TILE_LEVELS) if count % TILE_HASHES else [])
        level += 1
    return Tree(size, edges)


class TileReader:
    """Hashes of the tree of the first `size` events; each tile is read once."""

    def __init__(self, connection: AsyncConnection, size: int) -> None:
        self._connection = connection
        self._size = size
        self._tiles: dict[tuple[int, int], list[bytes]] = {}

    async def inclusion_proof(self, index: int) -> list[bytes]:
        """See merkle.inclusion_proof."""
        ranges: list[tuple[int, int]] = []
        inclusion_proof(index, self._size, _noting(ranges))
        roots = {one: await self.root(*one) for one in ranges}
        return inclusion_proof(index, self._size, lambda begin, end: roots[begin, end])

    async def consistency_proof(self, old_size: int) -> list[bytes]:
        """See merkle.consistency_proof."""
        ranges: list[tuple[int, int]] = []
        consistency_proof(old_size, self._size, _noting(ranges))
        roots = {one: await self.root(*one) for one in ranges}
        return consistency_proof(old_size, self._size, lambda begin, end: roots[begin, end])

    async def root(self, begin: int, end: int) -> bytes:
        """The hash over the leaves [begin, end), which are a node of the tree."""
        nodes = [await self._node(level, index) for level, index in complete_subtrees(begin, end)]
        return Frontier(end - begin, nodes).root()

    async def _node(self, level: int, index: int) -> bytes:
        above = level % TILE_LEVELS
        tile_level = level // TILE_LEVELS
        first = index << above
        hashes = await self.hashes(tile_level, first >> TILE_LEVELS)
        begin = first % TILE_HASHES
        return root_of(hashes[begin : begin + (1 << above)])

    async def hashes(self, level: int, index: int) -> list[bytes]:
        """Of one tile, all that this tree has of it."""
        key = (level, index)
        if key not in self._tiles:
            self._tiles[key] = await self._read(level, index)
        return self._tiles[key]

    async def _read(self, level: int, index: int) -> list[bytes]:
        first = index << TILE_LEVELS
        end = min(first + TILE_HASHES, self._size >> TILE_LEVELS * level)
        cursor = self._connection.cursor(binary=True)
        row = await (await cursor.execute(TILE, (level, index))).fetchone()
        if row is not None:
            whole: bytes = row[0]
            return [whole[at : at + HASH_BYTES] for at in range(0, (end - first) * HASH_BYTES, HASH_BYTES)]
        if end - first == TILE_HASHES:
            raise TreeDamaged(f"tile {index} of level {level} is missing")
        if level == 0:
            return await leaf_hashes(self._connection, after=first, until=end)
        roots = [root for (root,) in await (await cursor.execute(ROOTS, (level - 1, first, end))).fetchall()]
        if len(roots) != end - first:
            raise TreeDamaged(f"a tile of level {level - 1} between {first} and {end} is missing")
        return roots


def _noting(ranges: list[tuple[int, int]]) -> RangeRoot:
    """Proofs ask for hashes as they go, and reading takes a wait: first note what they ask for."""

    def note(begin: int, end: int) -> bytes:
        ranges.append((begin, end))
        return b""

    return note


async def verify_tiles(connection: AsyncConnection, *, first: int, end: int) -> None:
    """Hold the stored tiles [first, end) of level 0 against the events that they were made of.

    Raises:
        LogHole: an event is not there.
        TreeDamaged: one of them differs.
    """
    for index in range(first, end):
        hashes = await leaf_hashes(connection, after=index << TILE_LEVELS, until=(index + 1) << TILE_LEVELS)
        cursor = connection.cursor(binary=True)
        row = await (
            await cursor.execute("SELECT root, hashes FROM notary_tiles WHERE level = 0 AND index = %s", (index,))
        ).fetchone()
        if row is None:
            raise TreeDamaged(f"tile {index} of level 0 is missing")
        if (root_of(hashes), b"".join(hashes)) != row:
            wrong = next((n for n, one in enumerate(hashes) if row[1][n * HASH_BYTES : (n + 1) * HASH_BYTES] != one), 0)
            raise TreeDamaged(f"event {(index << TILE_LEVELS) + wrong + 1} is not the one that was signed")
        await asyncio.sleep(0)
