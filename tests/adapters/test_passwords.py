"""Hashes of passwords: what is good, what is outdated, what is refused, and how many may wait."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import bcrypt
import pytest
from argon2 import PasswordHasher
from argon2.profiles import RFC_9106_LOW_MEMORY

from sightline.adapters import passwords as passwords_
from sightline.adapters.passwords import HashingBusy, Passwords, Verified, require_hash
from sightline.domain.kernel import Invalid

WORDS = "correct horse battery staple"
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    opened = Passwords(CHEAP)
    yield opened
    opened.close()


async def test_a_password_is_good_and_another_is_not(passwords: Passwords) -> None:
    known = await passwords.hash(WORDS)
    assert known.startswith("$argon2id$v=19$")
    assert await passwords.verify(WORDS, known) == Verified(good=True)
    assert await passwords.verify(WORDS + " ", known) == Verified(good=False)
    assert await passwords.hash(WORDS) != known


async def test_new_hashes_are_those_of_rfc_9106() -> None:
    passwords = Passwords()
    try:
        known = await passwords.hash(WORDS)
        assert f"m={64 * 1024},t=3,p=4" in known
        assert RFC_9106_LOW_MEMORY.memory_cost == 64 * 1024
        assert (await passwords.verify(WORDS, CHEAP.hash(WORDS))) == Verified(good=True, outdated=True)
        assert require_hash(known) == known
    finally:
        passwords.close()


async def test_bcrypt_is_taken_and_outdated(passwords: Passwords) -> None:
    known = bcrypt.hashpw(WORDS.encode(), bcrypt.gensalt(4)).decode()
    assert await passwords.verify(WORDS, known) == Verified(good=True, outdated=True)
    assert await passwords.verify(WORDS + "!", known) == Verified(good=False)
    long = "x" * 100
    cut = bcrypt.hashpw(long.encode()[:72], bcrypt.gensalt(4)).decode()
    assert (await passwords.verify(long, cut)).good


async def test_a_password_is_one_however_it_is_typed(passwords: Passwords) -> None:
    composed, decomposed = "caf\u00e9 caf\u00e9 caf\u00e9", "cafe\u0301 cafe\u0301 cafe\u0301"
    known = await passwords.hash(decomposed)
    assert (await passwords.verify(composed, known)).good
    as_typed = CHEAP.hash(decomposed.encode())  # elsewhere, without a normal form
    assert (await passwords.verify(decomposed, as_typed)).good


@pytest.mark.parametrize("odd", ["", "\0", "a\0" * 20, "\udc00" * 20, "x" * 1_000_000, "é" * 2000])
async def test_odd_passwords_are_wrong_and_no_more(passwords: Passwords, odd: str) -> None:
    for known in (await passwords.hash(WORDS), bcrypt.hashpw(b"x", bcrypt.gensalt(4)).decode(), None, "", "$argon2id$"):
        assert await passwords.verify(odd, known) == Verified(good=False)


async def test_nobody_has_no_password(passwords: Passwords, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown user costs one hash as well; and even the password of the dummy is nobody's."""
    asked: list[tuple[str, str]] = []
    matches = Passwords._matches

    def count(self: Passwords, password: str, known: str) -> bool:
        asked.append((password, known))
        return matches(self, password, known)

    monkeypatch.setattr(Passwords, "_matches", count)
    assert await passwords.verify(WORDS, None) == Verified(good=False)
    assert len(asked) == 1
    monkeypatch.setattr(Passwords, "_matches", lambda *_: True)
    assert await passwords.verify(WORDS, None) == Verified(good=False)


class Slow(PasswordHasher):
    """Holds each hash until it is let go."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=8, parallelism=1)
        self.go = threading.Event()
        self.go.set()

    def verify(self, *said: Any, **more: Any) -> Any:
        self.go.wait(60)
        return super().verify(*said, **more)


@pytest.fixture
async def slow() -> AsyncIterator[tuple[Passwords, Slow]]:
    hasher = Slow()
    opened = Passwords(hasher)
    yield opened, hasher
    hasher.go.set()
    opened.close()


async def test_only_so_many_wait(slow: tuple[Passwords, Slow]) -> None:
    passwords, hasher = slow
    known = await passwords.hash(WORDS)
    hasher.go.clear()
    places = passwords_.HASHES_AT_ONCE + passwords_.HASHES_WAITING_MAX
    waiting = [asyncio.ensure_future(passwords.verify(WORDS, known)) for _ in range(places)]
    await asyncio.sleep(0)  # each takes its place
    with pytest.raises(HashingBusy) as refusal:
        await passwords.verify(WORDS, known)
    assert refusal.value.extra["retry_after_s"] > 0
    waiting.pop().cancel()  # one that only waits gives its place up, one that runs does not
    hasher.go.set()
    assert all(one.good for one in await asyncio.gather(*waiting))
    assert (await passwords.verify(WORDS, known)).good


async def test_the_event_loop_goes_on_meanwhile(slow: tuple[Passwords, Slow]) -> None:
    passwords, hasher = slow
    known = await passwords.hash(WORDS)
    hasher.go.clear()
    verifying = asyncio.ensure_future(passwords.verify(WORDS, known))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not verifying.done()
    hasher.go.set()
    assert (await verifying).good


@pytest.mark.parametrize(
    "bad",
    [
        "",
        WORDS,
        "5f4dcc3b5aa765d61d8327deb882cf99",
        "$2b$15$" + "a" * 53,
        "$2x$10$" + "a" * 53,
        "$2b$10$" + "a" * 52,
        "$argon2i$v=19$m=65536,t=3,p=4$c2FsdHNhbHRzYWx0$" + "a" * 43,
        "$argon2id$v=19$m=4194304,t=3,p=4$c2FsdHNhbHRzYWx0$" + "a" * 43,
        "$argon2id$v=19$m=65536,t=99,p=4$c2FsdHNhbHRzYWx0$" + "a" * 43,
        "$argon2id$v=19$m=65536,t=3,p=64$c2FsdHNhbHRzYWx0$" + "a" * 43,
        "$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHRzYWx0$" + "a" * 43 + "\n",
    ],
)
def test_a_hash_from_elsewhere_must_be_one_that_we_can_bear(bad: str) -> None:
    with pytest.raises(Invalid) as refusal:
        require_hash(bad)
    assert not bad or bad not in str(refusal.value)


def test_a_hash_from_elsewhere_is_taken_as_it_is() -> None:
    for known in (CHEAP.hash(WORDS), bcrypt.hashpw(WORDS.encode(), bcrypt.gensalt(4)).decode()):
        assert require_hash(known) == known
