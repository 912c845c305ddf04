"""Is the restored log whole? Every event is read once: positions, versions, and the roots that were signed for them.

What `sightline audit export` and `verify` say of a bundle on paper, this says of a database in place, before anybody
writes to it.
"""

from pathlib import Path
from uuid import UUID

import psycopg
from msgspec import Struct
from psycopg.rows import TupleRow

from ..domain.merkle import Frontier, leaf_hash
from . import postgres
from .event_store.leaf import leaf
from .notes import NoteRefused, read_public_keys, verify_checkpoint

PAGE_EVENTS = 5_000

EVENTS = (
    "SELECT position, stream_id, version, topic, metadata, data,"
    " (extract(epoch FROM recorded_at) * 1000000)::bigint FROM events ORDER BY position"
)
CHECKPOINTS = "SELECT tree_size, root, note FROM notary_checkpoints ORDER BY tree_size"


class AuditFailed(RuntimeError):
    """The log is not what it was."""


class Audited(Struct, frozen=True):
    """
    Attributes:
        checkpoints: signed roots that the events were held against.
        signed_to: the last position that one of them covers.
        signatures: whether there was a public key to check theirs with.
    """

    events: int
    checkpoints: int
    signed_to: int
    signatures: bool

    def __str__(self) -> str:
        unchecked = "" if self.signatures or not self.checkpoints else "; no public key, signatures unchecked"
        agree = f"{self.checkpoints} checkpoints agree, up to position {self.signed_to}{unchecked}"
        return f"{self.events} events whole, {agree}"


def audit(dsn: str, keys_dir: Path) -> Audited:
    """Read the whole log.

    Raises:
        AuditFailed: a hole, a version out of order, or a root that is not the one signed; with the first such position.
    """
    frontier = Frontier()
    versions: dict[UUID, int] = {}
    with psycopg.connect(dsn) as connection:
        postgres.adapt(connection)
        public_keys = read_public_keys(keys_dir)
        roots = _roots(connection, public_keys)
        sizes = iter(sorted(roots))
        due = next(sizes, None)
        checked = 0
        with connection.cursor(name="audit") as cursor:
            cursor.itersize = PAGE_EVENTS
            cursor.execute(EVENTS)
            for row in cursor:
                frontier.append(_hashed(row, frontier.size, versions))
                if frontier.size == due:
                    if frontier.root() != roots[due]:
                        raise AuditFailed(f"the events up to position {due} are not those that checkpoint {due} signs")
                    checked += 1
                    due = next(sizes, None)
    if due is not None:
        raise AuditFailed(f"checkpoint {due} is of a longer log: it ends at position {frontier.size}")
    return Audited(frontier.size, checked, max(roots, default=0), bool(public_keys))


def _roots(connection: psycopg.Connection[TupleRow], public_keys: str) -> dict[int, bytes]:
    """The signed root of each size; as the table has it, where there is no key to check the signature with."""
    roots = {}
    for size, stored, note in connection.execute(CHECKPOINTS):
        root = bytes(stored)
        if public_keys:
            try:
                signed = verify_checkpoint(note, public_keys)
            except NoteRefused as error:
                raise AuditFailed(f"the signature of checkpoint {size} does not hold: {error}") from error
            if (signed.tree_size, signed.root) != (size, root):
                raise AuditFailed(f"checkpoint {size} is not the one that was signed")
        roots[size] = root
    return roots


def _hashed(row: TupleRow, before: int, versions: dict[UUID, int]) -> bytes:
    position, stream_id, version = row[:3]
    if position != before + 1:
        raise AuditFailed(f"position {before + 1} is missing")
    if version != versions.get(stream_id, 0) + 1:
        raise AuditFailed(f"position {position} has version {version} of its stream out of order")
    versions[stream_id] = version
    return leaf_hash(leaf(*row))
