"""Hashes of passwords: argon2id, with bcrypt taken over from elsewhere until its owner logs in.

A hash costs 64 MiB and some tens of milliseconds on purpose. So it is made off the event loop, by few threads, and
few may wait for them: beyond that a login is refused at once instead of every other one being late.
"""

import asyncio
import re
import secrets
import threading
import unicodedata
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import bcrypt
from argon2 import PasswordHasher, extract_parameters
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.low_level import Type
from argon2.profiles import RFC_9106_LOW_MEMORY
from msgspec import Struct

from ..domain.kernel import Invalid, Rejection
from ..domain.users import PASSWORD_CHARS_MAX

HASHES_AT_ONCE = 2  # each with four lanes and 64 MiB
HASHES_WAITING_MAX = 32
RETRY_AFTER_S = 2

# Of hashes from elsewhere: a costlier one would be a way to keep the service busy.
BCRYPT_COST_MAX = 14
ARGON2_MEMORY_KIB_MAX = 256 * 1024
ARGON2_TIME_MAX = 10
ARGON2_LANES_MAX = 8
BCRYPT_BYTES_MAX = 72  # of a password; bcrypt never looked at more, so an old hash says no more

_BCRYPT = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}")
_ARGON2ID = re.compile(r"\$argon2id\$v=19\$m=\d{1,7},t=\d{1,3},p=\d{1,3}\$[A-Za-z0-9+/]{11,86}\$[A-Za-z0-9+/]{22,86}")

T = TypeVar("T")


class HashingBusy(Rejection):
    """HASHES_WAITING_MAX others wait for a hash."""

    code = "hashing_busy"


class Verified(Struct, frozen=True):
    """Attributes:
    good: it is the password.
    outdated: and its hash should be made anew: bcrypt's, or with other parameters than today's.
    """

    good: bool
    outdated: bool = False


class Passwords:
    """Makes and verifies hashes; one per process.

    Args:
        hasher: its parameters are those of new hashes.
    """

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)
        self._threads = ThreadPoolExecutor(HASHES_AT_ONCE, "password")
        self._places = threading.BoundedSemaphore(HASHES_AT_ONCE + HASHES_WAITING_MAX)
        # Of a password that nobody has: verified where there is no hash, it makes a no cost the same.
        self._dummy = self._hasher.hash(secrets.token_hex())

    def close(self) -> None:
        """Hashes under way are finished."""
        self._threads.shutdown(cancel_futures=True)

    async def hash(self, password: str) -> str:
        """
        Raises:
            HashingBusy: too many wait.
        """
        return await self._run(lambda: self._hasher.hash(_normal(password)))

    async def verify(self, password: str, known: str | None) -> Verified:
        """Whether `password` is that of the hash `known`; where there is none, a no that takes as long.

        Raises:
            HashingBusy: too many wait.
        """
        return await self._run(lambda: self._verified(password, known))

    def _verified(self, password: str, known: str | None) -> Verified:
        # What was hashed elsewhere may have been hashed as it was typed.
        for candidate in dict.fromkeys((_normal(password), password[:PASSWORD_CHARS_MAX])):
            if self._matches(candidate, known or self._dummy) and known is not None:
                outdated = not known.startswith("$argon2id$") or self._hasher.check_needs_rehash(known)
                return Verified(good=True, outdated=outdated)
        return Verified(good=False)

    def _matches(self, password: str, known: str) -> bool:
        given = password.encode(errors="surrogatepass")
        try:
            if _BCRYPT.fullmatch(known):
                return bcrypt.checkpw(given[:BCRYPT_BYTES_MAX], known.encode())
            return self._hasher.verify(known, given)
        except (VerificationError, InvalidHashError, ValueError):  # another password, or no hash at all
            return False

    async def _run(self, work: Callable[[], T]) -> T:
        if not self._places.acquire(blocking=False):
            raise HashingBusy("too many logins at once; try again", retry_after_s=RETRY_AFTER_S)
        future: Future[T] = self._threads.submit(work)
        # Whoever stops waiting does not stop the work: its place is free when that is.
        future.add_done_callback(lambda _: self._places.release())
        return await asyncio.wrap_future(future)


def require_hash(text: str) -> str:
    """`text`, if it is a hash that we can verify at a cost that we bear.

    Raises:
        Invalid: it is not; the words do not hold it.
    """
    bcrypt_like = _BCRYPT.fullmatch(text)
    if bcrypt_like is not None:
        if int(bcrypt_like[1]) > BCRYPT_COST_MAX:
            raise Invalid(f"bcrypt's cost is at most {BCRYPT_COST_MAX}")
        return text
    if _ARGON2ID.fullmatch(text) is None:
        raise Invalid("a hash of a password is argon2id's ($argon2id$v=19$…) or bcrypt's ($2b$…)")
    found = extract_parameters(text)
    if (
        found.type is not Type.ID
        or found.memory_cost > ARGON2_MEMORY_KIB_MAX
        or not 1 <= found.time_cost <= ARGON2_TIME_MAX
        or not 1 <= found.parallelism <= ARGON2_LANES_MAX
    ):
        raise Invalid(
            f"argon2id's memory is at most {ARGON2_MEMORY_KIB_MAX} KiB, its time {ARGON2_TIME_MAX},"
            f" its lanes {ARGON2_LANES_MAX}"
        )
    return text


def _normal(password: str) -> str:
    """As users.require_password() has it. A longer one is nobody's, and is not worth more work than others."""
    return unicodedata.normalize("NFKC", password[:PASSWORD_CHARS_MAX])
