"""The notary: grows the log's Merkle tree after the fact, and signs what it was.

It looks at the log every half a second instead of listening for each append: under load that would wake it five
hundred times a second for one signature. What it signs once it never contradicts. Before it goes on it holds its
stored tree against the log, and whatever does not fit is an alarm, and no signature, until a person has looked.
"""

import asyncio
from pathlib import Path
from typing import LiteralString
from uuid import UUID

import psycopg
import structlog
from msgspec import Struct
from psycopg import errors

from ..adapters import keyfiles, metrics, postgres
from ..adapters.event_store import tree as trees
from ..adapters.event_store.reader import LogHole
from ..adapters.event_store.tree import TILE_LEVELS, Tile, TileReader, Tree, TreeDamaged
from ..adapters.notes import Checkpoint, NoteRefused, Signer, verify_checkpoint
from ..adapters.settings import Settings
from .lifecycle import pause

INTERVAL_S = 0.5  # an event is signed for at most this and one step after its commit
BATCH_EVENTS_MAX = 16_384
TILES_VERIFIED = 256  # the last 65,536 events, at each start; `sightline audit verify` takes them all
WAITING_PAUSE_S = 1.0
ALARM_PAUSE_S = 10.0
RETRY_PAUSE_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
KEPT_FILE = "last-checkpoint.note"

# One notary at a time; the lock is the connection's, and so is every signature that gets stored.
LOCK: LiteralString = "SELECT pg_try_advisory_lock(hashtext('sightline.notary'))"
HEAD: LiteralString = (
    "SELECT coalesce((SELECT position FROM events ORDER BY position DESC LIMIT 1), 0), epoch FROM log_head"
)
LAST: LiteralString = "SELECT tree_size, root, note FROM notary_checkpoints ORDER BY tree_size DESC LIMIT 1"
STORE_TILE: LiteralString = "INSERT INTO notary_tiles (level, index, root, hashes) VALUES (%s, %s, %s, %s)"
STORE: LiteralString = (
    "INSERT INTO notary_checkpoints (tree_size, root, note, signed_at, epoch, lsn)"
    " SELECT %(size)s, %(root)s, %(note)s, clock_timestamp(), %(epoch)s, pg_current_wal_lsn() FROM log_head"
    " WHERE epoch = %(epoch)s"
    " AND coalesce((SELECT tree_size FROM notary_checkpoints ORDER BY tree_size DESC LIMIT 1), 0) = %(after)s"
)

log = structlog.get_logger(__name__)


class Contradiction(Exception):
    """What would have to be signed is not a continuation of what was signed. The text says in what."""


class Overtaken(Exception):
    """The log's epoch or its last checkpoint moved under this notary: it starts again from what is there."""


class Kept(Struct, frozen=True):
    """The last checkpoint that was signed here, outside the database: what a database that was set back cannot undo."""

    path: Path

    @classmethod
    def of(cls, settings: Settings) -> "Kept":
        return cls(settings.data_dir / "notary" / KEPT_FILE)

    def read(self, public_keys: str) -> Checkpoint | None:
        """
        Raises:
            Contradiction: it is there, and is not one of ours.
        """
        try:
            return verify_checkpoint(self.path.read_text(), public_keys)
        except FileNotFoundError:
            return None
        except (NoteRefused, UnicodeDecodeError) as error:
            raise Contradiction(f"{self.path}: {error}") from error

    def write(self, note: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        keyfiles.put(self.path, note.encode())


class Notary:
    """One holder of the pen, on one connection. Open it with `open_notary`."""

    def __init__(
        self, connection: psycopg.AsyncConnection, signer: Signer, kept: Kept, tree: Tree, epoch: UUID
    ) -> None:
        self._connection = connection
        self._signer = signer
        self._kept = kept
        self._tree = tree
        self._epoch = epoch

    @property
    def size(self) -> int:
        """Events signed for."""
        return self._tree.size

    async def step(self) -> int:
        """Sign for what was appended since, at most BATCH_EVENTS_MAX events of it; how many they were.

        Raises:
            Contradiction: the log is shorter than what was signed.
            LogHole: an event is missing.
            Overtaken: start again with open_notary.
            psycopg.Error: nothing was signed, or it is not known; start again.
        """
        head, epoch = await _head(self._connection)
        if epoch != self._epoch:
            raise Overtaken
        before = self._tree.size
        if head < before:
            raise Contradiction(f"the log ends at {head}, and its first {before} events were signed")
        if head == before:
            return 0
        until = min(head, before + BATCH_EVENTS_MAX)
        tiles = self._tree.extend(await trees.leaf_hashes(self._connection, after=before, until=until))
        root = self._tree.root()
        note = self._signer.sign_checkpoint(self._signer.origin, until, root, [f"epoch {epoch}"])
        await self._store(tiles, root, note, after=before)
        self._kept.write(note)
        metrics.NOTARISED_POSITION.set(until)
        log.debug("checkpoint_signed", tree_size=until, events=until - before)
        return until - before

    async def _store(self, tiles: list[Tile], root: bytes, note: str, *, after: int) -> None:
        """Tiles and the checkpoint that covers them, both or neither."""
        given = {"size": self._tree.size, "root": root, "note": note, "epoch": self._epoch, "after": after}
        async with self._connection.transaction(), self._connection.cursor() as cursor:
            if tiles:
                await cursor.executemany(STORE_TILE, [(one.level, one.index, one.root, one.hashes) for one in tiles])
            await cursor.execute(STORE, given)
            if cursor.rowcount != 1:
                raise Overtaken


async def open_notary(connection: psycopg.AsyncConnection, signer: Signer, kept: Kept) -> Notary:
    """A notary that continues from the last checkpoint, after it found that the tree, the log and what it kept agree.

    Raises:
        Contradiction, TreeDamaged, LogHole: they do not.
        psycopg.Error: the database does not answer.
    """
    head, epoch = await _head(connection)
    last = await _last(connection, signer)
    size = last.tree_size if last else 0
    remembered = kept.read(signer.public_keys)
    if remembered is not None and remembered.tree_size > min(size, head):
        raise Contradiction(
            f"a tree of {remembered.tree_size} events was signed ({_epoch_of(remembered)}); this log ends at {head},"
            f" signed up to {size} (epoch {epoch}). Was it restored to an earlier moment? Then tell those who keep"
            f" checkpoints, and move {kept.path} away: signing starts again from {size}"
        )
    if size > head:
        raise Contradiction(f"the log ends at {head}, and its first {size} events were signed")
    tree = await trees.read_tree(connection, size)
    if last is not None and tree.root() != last.root:
        raise Contradiction(f"the stored tree of {size} events does not have the root that was signed")
    if remembered is not None:
        root = await TileReader(connection, size).root(0, remembered.tree_size)
        if root != remembered.root:
            raise Contradiction(
                f"the first {remembered.tree_size} events are not those that {kept.path} was signed for"
            )
    complete = size >> TILE_LEVELS
    await trees.verify_tiles(connection, first=max(0, complete - TILES_VERIFIED), end=complete)
    log.info("notary_ready", tree_size=size, origin=signer.origin, epoch=str(epoch))
    return Notary(connection, signer, kept, tree, epoch)


async def _head(connection: psycopg.AsyncConnection) -> tuple[int, UUID]:
    row = await (await connection.execute(HEAD)).fetchone()
    assert row is not None, "the log has no head: the database is not migrated"
    return row[0], row[1]


async def _last(connection: psycopg.AsyncConnection, signer: Signer) -> Checkpoint | None:
    row = await (await connection.execute(LAST)).fetchone()
    if row is None:
        return None
    size, root, note = row
    try:
        checkpoint = verify_checkpoint(note, signer.public_keys)
    except NoteRefused as error:
        raise Contradiction(f"the checkpoint of {size} events is not one of this notary's: {error}") from error
    if (checkpoint.origin, checkpoint.tree_size, checkpoint.root) != (signer.origin, size, root):
        raise Contradiction(f"the checkpoint of {size} events says something else than its row")
    return checkpoint


def _epoch_of(checkpoint: Checkpoint) -> str:
    return next((line for line in checkpoint.extensions if line.startswith("epoch ")), "no epoch")


async def run(settings: Settings, stopping: asyncio.Event) -> None:
    """Follow the log until `stopping`. While another notary does, wait; while something contradicts what was signed,
    say so again and again, and sign nothing.

    Raises:
        NoteRefused, OSError: the key cannot be read or made.
    """
    signer = Signer.load(settings.data_dir / "keys")
    kept = Kept.of(settings)
    failures = 0
    while not stopping.is_set():
        try:
            async with await postgres.connect(settings.database_direct_url or settings.database_url) as connection:
                if not await _locked(connection):
                    await pause(stopping, WAITING_PAUSE_S)
                    continue
                notary = await open_notary(connection, signer, kept)
                while not stopping.is_set():
                    signed = await notary.step()
                    failures = 0
                    await pause(stopping, 0 if signed == BATCH_EVENTS_MAX else INTERVAL_S)
        except Overtaken:
            log.warning("notary_overtaken")
            await pause(stopping, RETRY_PAUSE_S[0])
        except (Contradiction, TreeDamaged, LogHole, errors.UniqueViolation) as error:
            metrics.NOTARY_REFUSALS.inc()
            log.critical("notary_refuses", error=str(error))
            await pause(stopping, ALARM_PAUSE_S)
        except (psycopg.Error, OSError) as error:  # the disk may be full, or away: what was signed is kept on it
            log.warning("notary_failed", error=str(error))
            await pause(stopping, RETRY_PAUSE_S[min(failures, len(RETRY_PAUSE_S) - 1)])
            failures += 1


async def _locked(connection: psycopg.AsyncConnection) -> bool:
    row = await (await connection.execute(LOCK)).fetchone()
    return row is not None and bool(row[0])
