"""The vault: seals personal data under a key per person, so that destroying one key erases one person from everywhere.

Three layers. A text is sealed with its person's key. That key lies in the database, wrapped by the sealing key, which
lies outside the database and its backups. Which key is whose is found by a keyed digest of the person, whose secret
lies in the database too, wrapped in the same way: without the sealing key nobody can look for a person by guessing.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import LiteralString
from uuid import UUID, uuid4

import psycopg
import structlog
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Struct
from psycopg_pool import AsyncConnectionPool

from ..domain.sealed import Sealed
from .event_store.codec import NotStorable
from .sealing_keys import KEY_BYTES, KeyRing, SealBroken, VaultLocked, decrypt, encrypt
from .settings import Settings

PADDING_BYTES = 32  # texts are filled up to a multiple of this, so that a box does not tell how long its text is
TRIES_MAX = 3
REWRAP_ROWS = 500

_SECRET_NAME = b"sightline-lookup-secret-1"
_PERSON_NAME = b"sightline-person-1\0"

log = structlog.get_logger(__name__)

LOOKUP: LiteralString = "SELECT key_id, wrapped_secret FROM sealing_secret"
MAKE_LOOKUP: LiteralString = (
    "INSERT INTO sealing_secret (key_id, wrapped_secret) VALUES (%s, %s) ON CONFLICT DO NOTHING"
)
BY_PERSON: LiteralString = "SELECT subject, key_id, wrapped_key FROM subject_keys WHERE lookup = %s"
BY_SUBJECT: LiteralString = "SELECT subject, key_id, wrapped_key FROM subject_keys WHERE subject = ANY (%s)"
# The lock makes a rotation wait for this key, or this key find that the sealing key is another one by now; it would
# be lost if it were wrapped by one that is about to be destroyed.
MAKE_KEY: LiteralString = (
    "INSERT INTO subject_keys (subject, lookup, key_id, wrapped_key, created_at)"
    " SELECT %(subject)s, %(lookup)s, %(key_id)s, %(wrapped)s, clock_timestamp()"
    " FROM sealing_secret WHERE key_id = %(key_id)s FOR SHARE ON CONFLICT (lookup) DO NOTHING"
)
LEFT: LiteralString = "SELECT subject FROM subject_keys WHERE key_id <> %s LIMIT 1"
ERASE: LiteralString = "DELETE FROM subject_keys WHERE subject = ANY (%s) RETURNING subject"


class _Opened(Struct, frozen=True):
    """Attributes:
    key_id: of the sealing key that the database says is the one now.
    """

    key_id: bytes
    lookup_secret: bytes


class Vault:
    """Seals and opens. Keys of people are asked of the database each time: one kept here would outlive its erasure."""

    def __init__(self, pool: AsyncConnectionPool, ring: KeyRing) -> None:
        self._pool = pool
        self._ring = ring
        self._opened: _Opened | None = None

    @classmethod
    def of(cls, pool: AsyncConnectionPool, settings: Settings) -> "Vault":
        return cls(pool, KeyRing(settings.data_dir / "keys", settings.sealing_key))

    async def open(self) -> None:
        """Find out now whether the sealing key fits, instead of at the first person; the first of all makes it.

        Raises:
            VaultLocked: it does not fit.
        """
        async with self._pool.connection() as connection:
            await self._open(connection)

    async def seal(self, field: str, *, person: str, text: str) -> Sealed:
        """`text` about `person`, for `field` and no other.

        Args:
            field: where the box will lie, such as `session.user_id`; it opens nowhere else.
            person: under which the person is erased one day.
            text: at most a few KiB; it is held in memory whole.

        Raises:
            NotStorable: NUL or a lone surrogate in either.
            VaultLocked: the sealing key is not here.
        """
        subject, key = await self._key_of(_utf8(person))
        return _sealed(field, subject, key, text)

    async def seal_beside(self, beside: Sealed, field: str, *, text: str) -> Sealed | None:
        """`text` about the person that `beside` is about; None where that person was erased. Never makes a key.

        Raises:
            NotStorable, VaultLocked: as seal().
        """
        keys = await self._keys({beside.subject}) if beside.subject is not None else {}
        for subject, key in keys.items():
            return _sealed(field, subject, key, text)
        return None

    async def open_many(self, field: str, sealed: Sequence[Sealed | None]) -> list[str | None]:
        """The texts, in the same order; None where there was none, and where the person was erased.

        Raises:
            VaultLocked: the sealing key is not here.
        """
        subjects = {one.subject for one in sealed if one is not None and one.subject is not None}
        keys = await self._keys(subjects) if subjects else {}
        return [None if one is None else _opened(field, one, keys) for one in sealed]

    async def open_one(self, field: str, sealed: Sealed | None) -> str | None:
        return (await self.open_many(field, [sealed]))[0]

    async def subject_of(self, person: str) -> UUID | None:
        """The subject under which this person's data are sealed now, if there is one."""
        async with self._pool.connection() as connection:
            opened = await self._open(connection)
            cursor = await connection.execute(BY_PERSON, (_lookup(opened, _utf8(person)),))
            row = await cursor.fetchone()
        return row[0] if row else None

    async def erase(self, subjects: Sequence[UUID]) -> list[UUID]:
        """Destroy these people's keys; those that there were."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(ERASE, (list(subjects),))
            return [subject for (subject,) in await cursor.fetchall()]

    async def rotate(self) -> int:
        """Wrap everything with a new sealing key (with the first of the given ones) and destroy the old one's file.

        May be cut off anywhere and called again; sealing and opening go on meanwhile.

        Returns:
            How many people's keys were wrapped anew.

        Raises:
            VaultLocked: the key until now is not here.
        """
        await self.open()
        with self._ring.rotating() as key_id:
            async with self._pool.connection() as connection:
                await self._rewrap_secret(connection, key_id)
                count = await self._rewrap_keys(connection, key_id)
                left = await (await connection.execute(LEFT, (key_id,))).fetchone()
            if left is not None:
                raise VaultLocked(f"the key of {left[0]} is still wrapped by another sealing key: call it again")
        return count

    async def _open(self, connection: psycopg.AsyncConnection) -> _Opened:
        if self._opened is None:
            row = await (await connection.execute(LOOKUP)).fetchone()
            if row is None:
                key_id = self._ring.newest()
                wrapped = encrypt(self._ring.find(key_id), secrets.token_bytes(KEY_BYTES), _SECRET_NAME)
                await connection.execute(MAKE_LOOKUP, (key_id, wrapped))
                row = await (await connection.execute(LOOKUP)).fetchone()  # Another process may have been first.
                assert row is not None
            key_id, wrapped = map(bytes, row)
            self._opened = _Opened(key_id, decrypt(self._ring.find(key_id), wrapped, _SECRET_NAME))
        return self._opened

    async def _key_of(self, person: bytes) -> tuple[UUID, bytes]:
        """The person's subject and key, made where there is none."""
        async with self._pool.connection() as connection:
            for _ in range(TRIES_MAX):
                opened = await self._open(connection)
                lookup = _lookup(opened, person)
                row = await (await connection.execute(BY_PERSON, (lookup,))).fetchone()
                if row is not None:
                    return row[0], self._unwrap(*row)
                if not self._ring.knows(opened.key_id):
                    self._opened = None  # Rotated, and the old key is destroyed.
                    continue
                subject, key = uuid4(), AESGCM.generate_key(KEY_BYTES * 8)
                wrapped = encrypt(self._ring.find(opened.key_id), key, subject.bytes)
                given = {"subject": subject, "lookup": lookup, "key_id": opened.key_id, "wrapped": wrapped}
                if (await connection.execute(MAKE_KEY, given)).rowcount == 1:
                    return subject, key
                self._opened = None  # Somebody else made it just now, or the sealing key was rotated: look again.
        raise VaultLocked(f"the sealing key changed {TRIES_MAX} times meanwhile")

    async def _keys(self, subjects: set[UUID]) -> dict[UUID, bytes]:
        keys: dict[UUID, bytes] = {}
        async with self._pool.connection() as connection:
            for row in await (await connection.execute(BY_SUBJECT, (list(subjects),))).fetchall():
                try:
                    keys[row[0]] = self._unwrap(*row)
                except SealBroken:
                    log.exception("seal_broken", subject=str(row[0]))  # As below: one damaged row is not the page.
        return keys

    def _unwrap(self, subject: UUID, key_id: bytes, wrapped: bytes) -> bytes:
        return decrypt(self._ring.find(bytes(key_id)), bytes(wrapped), subject.bytes)

    async def _rewrap_secret(self, connection: psycopg.AsyncConnection, key_id: bytes) -> None:
        async with connection.transaction():
            row = await (await connection.execute(LOOKUP + " FOR UPDATE")).fetchone()
            assert row is not None
            secret = decrypt(self._ring.find(bytes(row[0])), bytes(row[1]), _SECRET_NAME)
            wrapped = encrypt(self._ring.find(key_id), secret, _SECRET_NAME)
            await connection.execute("UPDATE sealing_secret SET key_id = %s, wrapped_secret = %s", (key_id, wrapped))
        self._opened = None

    async def _rewrap_keys(self, connection: psycopg.AsyncConnection, key_id: bytes) -> int:
        count, after = 0, UUID(int=0)
        while True:
            async with connection.transaction():
                cursor = await connection.execute(
                    "SELECT subject, key_id, wrapped_key FROM subject_keys WHERE subject > %s"
                    " ORDER BY subject LIMIT %s FOR UPDATE",
                    (after, REWRAP_ROWS),
                )
                rows = await cursor.fetchall()
                old = [row for row in rows if bytes(row[1]) != key_id]
                new = [(encrypt(self._ring.find(key_id), self._unwrap(*row), row[0].bytes), row[0]) for row in old]
                await connection.execute(
                    "UPDATE subject_keys AS k SET key_id = %s, wrapped_key = n.wrapped_key"
                    " FROM unnest(%s::bytea[], %s::uuid[]) AS n (wrapped_key, subject) WHERE k.subject = n.subject",
                    (key_id, [wrapped for wrapped, _ in new], [subject for _, subject in new]),
                )
            count += len(old)
            if len(rows) < REWRAP_ROWS:
                return count
            after = rows[-1][0]


def _sealed(field: str, subject: UUID, key: bytes, text: str) -> Sealed:
    plain = _utf8(text)
    padded = plain.ljust(-(-len(plain) // PADDING_BYTES) * PADDING_BYTES, b"\0")
    box = encrypt(key, padded, _binding(subject, field))
    return Sealed(subject, base64.urlsafe_b64encode(box).rstrip(b"=").decode())


def _opened(field: str, sealed: Sealed, keys: dict[UUID, bytes]) -> str | None:
    if sealed.subject is None:
        return sealed.box
    key = keys.get(sealed.subject)
    if key is None:
        return None
    try:
        box = base64.urlsafe_b64decode(sealed.box + "=" * (-len(sealed.box) % 4))
        return decrypt(key, box, _binding(sealed.subject, field)).rstrip(b"\0").decode()
    except ValueError as error:  # SealBroken, or no base64, or no text
        # One damaged value must not hide the rest of a page; whoever looks for the damage finds it here.
        log.error("seal_broken", subject=str(sealed.subject), field=field, error=repr(error))  # noqa: TRY400  # as said
        return None


def _binding(subject: UUID, field: str) -> bytes:
    return subject.bytes + field.encode()


def _lookup(opened: _Opened, person: bytes) -> bytes:
    return hmac.digest(opened.lookup_secret, _PERSON_NAME + person, hashlib.sha256)


def _utf8(text: str) -> bytes:
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise NotStorable("a string holds half of a surrogate pair") from error
    if b"\0" in encoded:
        raise NotStorable("a string holds a NUL character")
    return encoded
