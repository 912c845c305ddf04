"""The object store as its callers see it: two implementations, one suite (`tests/adapters/test_objects.py`).

An object is immutable bytes under a key. It appears whole or not at all: a crash, an error, a cut or one byte
too many leaves nothing under its key. The event log names keys with their SHA-256 and is the truth about them;
the store only keeps the bytes.
"""

import re
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from msgspec import Struct

KEY_LENGTH_MAX = 512
SEGMENT_LENGTH_MAX = 200  # A file system takes names of 255 bytes; the rest is left to the store's own suffixes.
CONTENT_TYPE_LENGTH_MAX = 255
FILENAME_LENGTH_MAX = 200
PAGE_LENGTH_MAX = 1000  # S3's own bound on one page of a listing.
EXPIRES_S_MAX = 7 * 24 * 3600  # S3's own bound on a signed URL.

_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")
_CONTENT_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+(; ?[A-Za-z0-9_-]+=[A-Za-z0-9_.-]+)*")


class ObjectStoreError(Exception):
    """Base of what an object store says. `code` is stable; the door turns it into a status."""

    code = "object_store_error"


class ObjectMissing(ObjectStoreError):
    code = "object_missing"


class ObjectExists(ObjectStoreError):
    """Something is under that key already, and the caller asked for an absent one."""

    code = "object_exists"


class ObjectTooLarge(ObjectStoreError):
    code = "object_too_large"


class ObjectMismatch(ObjectStoreError):
    """The bytes that came are not those that were announced (size or SHA-256). Nothing was stored."""

    code = "object_mismatch"


class ObjectDamaged(ObjectStoreError):
    """The stored bytes are not what was written: a disk or a person changed them."""

    code = "object_damaged"


class ObjectStoreUnavailable(ObjectStoreError):
    """The store could not be reached, is full, or refuses us. Trying again later may help."""

    code = "object_store_unavailable"


class InvalidKey(ObjectStoreError, ValueError):
    """Not a key, a prefix or a content type that both implementations can keep."""

    code = "invalid_key"


class ObjectInfo(Struct, frozen=True, kw_only=True):
    """What is known about one object.

    Attributes:
        sha256: lower-case hex; None where the store never saw the whole content as one (an S3 multipart stream).
    """

    key: str
    size_bytes: int
    sha256: str | None
    content_type: str


class ObjectEntry(Struct, frozen=True, kw_only=True):
    """One line of a listing. `modified_at` is the store's own clock, aware; S3's is in whole seconds."""

    key: str
    size_bytes: int
    modified_at: datetime


class SignedRequest(Struct, frozen=True, kw_only=True):
    """A request that anybody may send once, unchanged, until it expires: every header is bound by the signature."""

    method: str
    url: str
    headers: dict[str, str]


class ObjectStore(Protocol):
    """Every method may raise ObjectStoreUnavailable, and InvalidKey before anything else is looked at."""

    async def put(
        self,
        key: str,
        chunks: AsyncIterable[bytes],
        *,
        content_type: str,
        size_bytes_max: int,
        if_absent: bool = True,
        size_bytes: int | None = None,
        sha256: str | None = None,
    ) -> ObjectInfo:
        """Stores a stream, hashing it as it passes; memory is bounded by one block, not by the object.

        `size_bytes` and `sha256` (hex), where given, are what the stream must turn out to be. Whatever `chunks`
        itself raises passes through unchanged. After ObjectStoreUnavailable the object may be there or not.

        Raises:
            ObjectExists: `if_absent`, and something is there. Of several writers at once one wins; on S3 that is
                the service's own promise, which AWS keeps and Swift, looking only when a write begins, does not.
                Keys that no two writers share (an attempt's number in them) need no such promise.
            ObjectTooLarge: more than `size_bytes_max`.
            ObjectMismatch: not what was announced.
        """
        ...

    async def put_file(self, key: str, path: Path, *, content_type: str, if_absent: bool = True) -> ObjectInfo:
        """Stores a local file that nobody changes meanwhile; its SHA-256 is known to `stat` on every store.

        Raises:
            ObjectExists: as `put`.
            OSError: the file cannot be read.
        """
        ...

    def open(
        self, key: str, *, offset_bytes: int = 0, length_bytes: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Chunks of one object, or of `length_bytes` of it from `offset_bytes` on; beyond its end there are none.

        A context manager, so that leaving early never leaks a file or a connection.

        Raises:
            ObjectMissing: on entering.
            ValueError: a negative offset, or a length below 1.
        """
        ...

    async def download(self, key: str, path: Path) -> int:
        """Copies an object into a new or emptied local file and returns its bytes; a failure leaves no file.

        Raises:
            ObjectMissing: nothing is there.
            OSError: the file cannot be written.
        """
        ...

    async def stat(self, key: str) -> ObjectInfo | None:
        """What is under the key, or None."""
        ...

    async def delete(self, key: str) -> None:
        """Removes the object; an absent one is removed already."""
        ...

    async def delete_prefix(self, prefix: str) -> None:
        """Removes everything under a prefix that ends with a slash. Not atomic: run it again after a failure."""
        ...

    async def list_page(
        self, prefix: str = "", *, after: str = "", limit: int = PAGE_LENGTH_MAX
    ) -> Sequence[ObjectEntry]:
        """At most `limit` (1–1000) objects in key order, after the key `after`; a shorter page is the last one."""
        ...

    async def presign_put(
        self, key: str, *, content_type: str, size_bytes: int, expires_s: int, sha256: str | None = None
    ) -> SignedRequest:
        """One upload of exactly `size_bytes` of one type, to an absent key, of one content where `sha256` is given."""
        ...

    async def presign_get(self, key: str, *, filename: str, content_type: str | None = None, expires_s: int) -> str:
        """A URL that serves the object as an attachment called `filename`. It does not check that there is one.

        Our own door adds `X-Content-Type-Options: nosniff`; S3 cannot, but an attachment is not rendered either.
        """
        ...

    async def sweep_unfinished(self, before: datetime) -> int:
        """Drops what uploads begun before that time left behind (invisible under any key); returns how many."""
        ...

    async def ready(self) -> None:
        """Returns if a write would now be taken; raises ObjectStoreUnavailable otherwise."""
        ...

    async def close(self) -> None: ...


def checked_key(key: str) -> str:
    """`key` as it is.

    Raises:
        InvalidKey: not 1–512 of `[A-Za-z0-9._/-]`, or a segment is empty, longer than 200, `.` or `..`.
    """
    segments = key.split("/")
    if len(key) > KEY_LENGTH_MAX or not all(map(_is_segment, segments)):
        raise InvalidKey(f"not an object key: {key[:KEY_LENGTH_MAX]!r}")
    return key


def checked_prefix(prefix: str) -> str:
    """`prefix` as it is: empty, or a key and a slash, so that `jobs/1/` never means `jobs/12/…`.

    Raises:
        InvalidKey: anything else.
    """
    if prefix:
        if not prefix.endswith("/"):
            raise InvalidKey(f"a prefix ends with a slash: {prefix[:KEY_LENGTH_MAX]!r}")
        checked_key(prefix[:-1])
    return prefix


def checked_content_type(content_type: str) -> str:
    """`content_type` as it is; it will stand in a header, so nothing but a media type passes.

    Raises:
        InvalidKey: it is not one.
    """
    if len(content_type) > CONTENT_TYPE_LENGTH_MAX or not _CONTENT_TYPE.fullmatch(content_type):
        raise InvalidKey(f"not a content type: {content_type[:CONTENT_TYPE_LENGTH_MAX]!r}")
    return content_type


def checked_expiry_s(expires_s: int) -> int:
    """Raises ValueError outside 1 s – 7 days."""
    if not 1 <= expires_s <= EXPIRES_S_MAX:
        raise ValueError(f"a signed URL lives 1 to {EXPIRES_S_MAX} seconds, not {expires_s}")
    return expires_s


def checked_span(offset_bytes: int, length_bytes: int | None) -> None:
    """Raises ValueError for a span that HTTP cannot ask for: one before the start, or an empty one."""
    if offset_bytes < 0 or (length_bytes is not None and length_bytes < 1):
        raise ValueError(f"not a span of an object: {length_bytes} bytes from {offset_bytes}")


def safe_filename(filename: str) -> str:
    """The last part of a stranger's path: at most 200 printable characters, or `download` if none is left.

    Dots and spaces at its ends are dropped: some systems hide what begins with a dot, others drop one at the end, and
    with it what told them the type.
    """
    name = filename.replace("\\", "/").rpartition("/")[2]
    return "".join(char for char in name if char.isprintable())[:FILENAME_LENGTH_MAX].strip(". ") or "download"


def attachment(filename: str) -> str:
    """A Content-Disposition that saves under `filename` (RFC 6266), whatever characters a stranger put into it."""
    name = safe_filename(filename)
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _is_segment(segment: str) -> bool:
    return len(segment) <= SEGMENT_LENGTH_MAX and _SEGMENT.fullmatch(segment) is not None and segment not in {".", ".."}
