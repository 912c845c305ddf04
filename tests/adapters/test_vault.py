"""The vault against the real database: who can open what, what erasing destroys, and a rotation cut off anywhere."""

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
from psycopg_pool import AsyncConnectionPool
from tests.conftest_log import LogDatabase

from sightline.adapters import keyfiles, postgres, sealing_keys
from sightline.adapters import vault as vault_module
from sightline.adapters.event_store.codec import NotStorable
from sightline.adapters.sealing_keys import KEY_FILE, KeyRing, VaultLocked
from sightline.adapters.vault import Vault
from sightline.domain.sealed import Sealed

FIELD = "session.user_id"


@pytest_asyncio.fixture
async def pool(log_database: LogDatabase) -> AsyncIterator[AsyncConnectionPool]:
    async with postgres.pool(log_database.dsn) as opened:
        yield opened


@pytest.fixture
def keys_dir(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def vault(pool: AsyncConnectionPool, keys_dir: Path) -> Vault:
    return Vault(pool, KeyRing(keys_dir))


async def seal(vault: Vault, text: str, person: str = "ada") -> Sealed:
    return await vault.seal(FIELD, person=person, text=text)


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


# Sealing and opening


async def test_what_is_sealed_is_opened_and_shows_nothing(vault: Vault) -> None:
    texts = ["ada@example.com", "é海" * 30, "", "x" * 31, "x" * 32, " blank ", "tail\n"]
    sealed = [await seal(vault, text) for text in texts]
    assert await vault.open_many(FIELD, sealed) == texts
    assert len({one.subject for one in sealed}) == 1
    assert not any(text and text.strip() in one.box for text, one in zip(texts, sealed, strict=True))
    short, long = await seal(vault, "a"), await seal(vault, "a" * 31)
    assert len(short.box) == len(long.box)
    assert (await seal(vault, "a")).box != short.box
    assert "…" in repr(short)


async def test_each_person_has_a_key_and_one_only(vault: Vault, pool: AsyncConnectionPool, keys_dir: Path) -> None:
    elsewhere = Vault(pool, KeyRing(keys_dir))
    sealed = await asyncio.gather(*(seal(one, "t", person) for one in (vault, elsewhere) for person in "abab"))
    assert len({one.subject for one in sealed}) == 2
    assert await elsewhere.open_many(FIELD, sealed) == ["t"] * 8
    assert await vault.subject_of("a") == sealed[0].subject
    assert await vault.subject_of("c") is None


async def test_texts_from_before_sealing_and_none_at_all(vault: Vault) -> None:
    assert await vault.open_many(FIELD, [Sealed(None, "plain"), None, Sealed(uuid4(), "AAAA")]) == ["plain", None, None]


async def test_a_box_opens_only_where_it_belongs(vault: Vault) -> None:
    ours, theirs = await seal(vault, "t"), await seal(vault, "t", "bob")
    assert await vault.open_one("session.note", ours) is None
    assert await vault.open_one(FIELD, Sealed(theirs.subject, ours.box)) is None
    for box in (ours.box[:-2] + "AA", ours.box[:8], "", "é", "%%%"):
        assert await vault.open_one(FIELD, Sealed(ours.subject, box)) is None
    assert await vault.open_one(FIELD, ours) == "t"


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
async def test_what_is_no_text_is_refused(vault: Vault, text: str) -> None:
    with pytest.raises(NotStorable):
        await seal(vault, text)
    with pytest.raises(NotStorable):
        await seal(vault, "t", person=text)


# Erasing


async def test_an_erased_person_is_gone_at_once_and_may_come_back_as_another(
    vault: Vault, pool: AsyncConnectionPool, keys_dir: Path
) -> None:
    elsewhere = Vault(pool, KeyRing(keys_dir))
    before, other = await seal(vault, "t"), await seal(vault, "o", "bob")
    assert await elsewhere.open_many(FIELD, [before, other]) == ["t", "o"]
    assert before.subject is not None
    assert await vault.erase([before.subject, uuid4()]) == [before.subject]
    assert await vault.erase([before.subject]) == []
    for one in (vault, elsewhere):  # nobody remembers the key
        assert await one.open_many(FIELD, [before, other]) == [None, "o"]
    after = await seal(elsewhere, "t")
    assert after.subject != before.subject
    assert await vault.open_many(FIELD, [before, after]) == [None, "t"]


# The sealing key


async def test_the_key_is_made_once_for_its_owner_alone(vault: Vault, keys_dir: Path) -> None:
    await vault.open()
    path = keys_dir / KEY_FILE
    assert (path.stat().st_mode & 0o777, path.stat().st_size) == (0o600, 32)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert names(keys_dir) == [KEY_FILE]
    assert path.read_bytes().hex() not in repr(vars(vault))


async def test_without_the_right_key_nothing_opens_and_no_other_is_made(
    vault: Vault, pool: AsyncConnectionPool, keys_dir: Path, tmp_path: Path
) -> None:
    sealed = await seal(vault, "t")
    empty = tmp_path / "empty"
    stranger = Vault(pool, KeyRing(empty))
    for attempt in (stranger.open(), seal(stranger, "t"), stranger.open_one(FIELD, sealed), stranger.rotate()):
        with pytest.raises(VaultLocked, match="another key"):
            await attempt
    assert not empty.exists()
    assert await vault.open_one(FIELD, sealed) == "t"


async def test_keys_may_come_from_a_setting(pool: AsyncConnectionPool, tmp_path: Path) -> None:
    old, new = (base64.b64encode(secrets.token_bytes(32)).decode() for _ in range(2))
    before = Vault(pool, KeyRing(tmp_path, old))
    sealed = await seal(before, "t")
    assert names(tmp_path) == []
    both = Vault(pool, KeyRing(tmp_path, f"{new}, {old}"))
    assert await both.open_one(FIELD, sealed) == "t"
    await seal(both, "u", "bob")  # as long as the database says so, by the old one
    assert await before.open_one(FIELD, await seal(both, "v", "bob")) == "v"
    assert await both.rotate() == 2
    after = Vault(pool, KeyRing(tmp_path, new))
    assert await after.open_one(FIELD, sealed) == "t"
    with pytest.raises(VaultLocked):
        await before.open_one(FIELD, sealed)
    with pytest.raises(VaultLocked):
        await seal(before, "t", "carol")


@pytest.mark.parametrize("given", ["?", "AAAA", base64.b64encode(b"k" * 31).decode(), "," + "A" * 43])
def test_a_key_that_is_none_is_refused_and_not_quoted(tmp_path: Path, given: str) -> None:
    with pytest.raises(VaultLocked) as refused:
        KeyRing(tmp_path, given)
    assert given not in str(refused.value)


async def test_a_damaged_key_file_is_told(vault: Vault, keys_dir: Path) -> None:
    keyfiles.made_once(keys_dir / KEY_FILE, b"short")
    with pytest.raises(VaultLocked, match="holds 5 bytes"):
        await vault.open()


# Rotation


async def test_a_rotation_leaves_everything_open_to_everybody(
    vault: Vault, pool: AsyncConnectionPool, keys_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault_module, "REWRAP_ROWS", 3)
    elsewhere = Vault(pool, KeyRing(keys_dir))
    people = [str(number) for number in range(10)]
    sealed = [await seal(elsewhere, person, person) for person in people]
    old = (keys_dir / KEY_FILE).read_bytes()
    assert await vault.rotate() == 10
    assert names(keys_dir) == [KEY_FILE]
    assert (keys_dir / KEY_FILE).read_bytes() != old
    for one in (vault, elsewhere, Vault(pool, KeyRing(keys_dir))):
        assert await one.open_many(FIELD, sealed) == people
    assert (await seal(elsewhere, "0", "0")).subject == sealed[0].subject  # the person is still found
    assert await vault.open_one(FIELD, await seal(elsewhere, "new", "new")) == "new"
    (keys_dir / KEY_FILE).write_bytes(old)  # the control: the old key is worth nothing now
    with pytest.raises(VaultLocked):
        await Vault(pool, KeyRing(keys_dir)).open()


CUTS = ["put:1", "put:2", "_rewrap_secret", "_rewrap_keys", "unlink"]


@pytest.mark.parametrize("cut", CUTS)
async def test_a_rotation_that_was_cut_off_loses_nobody_and_is_resumed(
    vault: Vault, pool: AsyncConnectionPool, keys_dir: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    sealed = await seal(vault, "t")
    with monkeypatch.context() as patched:
        cut_off(patched, cut)
        with pytest.raises(Cut):
            await vault.rotate()
    for one in (vault, Vault(pool, KeyRing(keys_dir))):
        assert await one.open_one(FIELD, sealed) == "t"
        assert await one.open_one(FIELD, await seal(one, "u", str(uuid4()))) == "u"
    later = await seal(vault, "later", "dora")
    assert await Vault(pool, KeyRing(keys_dir)).rotate() in {0, 1, 2, 3, 4}
    assert await Vault(pool, KeyRing(keys_dir)).open_many(FIELD, [sealed, later]) == ["t", "later"]
    assert names(keys_dir) == [KEY_FILE]


class Cut(BaseException):
    """As a process ends that is killed."""


def cut_off(patched: pytest.MonkeyPatch, cut: str) -> None:
    name, _, nth = cut.partition(":")
    if name == "put":
        kept, calls = keyfiles.put, iter(range(1, 9))

        def put(path: Path, content: bytes) -> None:
            if next(calls) == int(nth):
                raise Cut
            kept(path, content)

        patched.setattr(sealing_keys, "put", put)
        return

    def end(*_: Any, **__: Any) -> None:
        raise Cut

    if name == "unlink":
        patched.setattr(Path, "unlink", end)
    else:
        patched.setattr(Vault, name, end)


async def test_two_rotations_do_not_meet(vault: Vault, pool: AsyncConnectionPool, keys_dir: Path) -> None:
    sealed = await seal(vault, "t")
    others = [Vault(pool, KeyRing(keys_dir)) for _ in range(3)]
    outcomes = await asyncio.gather(*(one.rotate() for one in others), return_exceptions=True)
    assert all(outcome in (0, 1) or isinstance(outcome, VaultLocked) for outcome in outcomes)
    assert 1 in outcomes
    assert await vault.open_one(FIELD, sealed) == "t"


async def test_people_come_while_the_key_is_rotated(vault: Vault, pool: AsyncConnectionPool, keys_dir: Path) -> None:
    elsewhere = Vault(pool, KeyRing(keys_dir))
    await seal(elsewhere, "first", "first")
    sealed: list[Sealed] = []

    async def arrive(person: int) -> None:
        sealed.append(await seal(elsewhere, str(person), str(person)))

    for number in range(3):
        arrivals = asyncio.gather(*(arrive(number * 100 + one) for one in range(20)))
        await vault.rotate()
        await arrivals
    fresh = Vault(pool, KeyRing(keys_dir))
    assert None not in await fresh.open_many(FIELD, sealed)
    assert len({one.subject for one in sealed}) == 60


@pytest.mark.parametrize("guarded", [True, False])
async def test_a_new_key_is_never_wrapped_by_one_that_is_about_to_go(
    vault: Vault, pool: AsyncConnectionPool, keys_dir: Path, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    """A process that slept through the start of a rotation comes with somebody new when all others are wrapped anew.

    The control: without the look at the database's own word the row is lost with the old key, were it not counted.
    """
    slow = Vault(pool, KeyRing(keys_dir))
    await slow.open()
    sealed: list[Sealed] = []
    rewrap = vault._rewrap_keys

    async def rewrap_and_meet(connection: Any, key_id: bytes) -> int:
        count = await rewrap(connection, key_id)
        sealed.append(await seal(slow, "t", "eve"))
        return count

    monkeypatch.setattr(vault, "_rewrap_keys", rewrap_and_meet)
    if guarded:
        await vault.rotate()
        assert await Vault(pool, KeyRing(keys_dir)).open_many(FIELD, sealed) == ["t"]
        return
    monkeypatch.setattr(
        vault_module, "MAKE_KEY", vault_module.MAKE_KEY.replace("WHERE key_id = %(key_id)s FOR SHARE", "")
    )
    with pytest.raises(VaultLocked, match="still wrapped"):
        await vault.rotate()


async def test_a_row_put_in_another_persons_place_does_not_open(vault: Vault, log_database: LogDatabase) -> None:
    ada, bob = await seal(vault, "t"), await seal(vault, "b", "bob")
    with log_database.connect() as connection:
        connection.execute(
            "UPDATE subject_keys AS k SET wrapped_key = o.wrapped_key FROM subject_keys AS o"
            " WHERE k.subject = %s AND o.subject = %s",
            (ada.subject, bob.subject),
        )
    assert await vault.open_many(FIELD, [ada, bob]) == [None, "b"]
    assert isinstance(ada.subject, UUID)
    with pytest.raises(VaultLocked):
        await seal(vault, "t")


async def test_what_is_sealed_beside_something_is_of_the_same_person_and_makes_no_key(vault: Vault) -> None:
    email = await vault.seal("user.email", person="ada", text="ada@example.org")
    beside = await vault.seal_beside(email, "user.password", text="hash")
    assert beside is not None
    assert beside.subject == email.subject
    assert await vault.open_one("user.password", beside) == "hash"
    assert await vault.open_one("user.email", beside) is None
    assert email.subject is not None
    await vault.erase([email.subject])
    assert await vault.seal_beside(email, "user.password", text="hash") is None
    assert await vault.subject_of("ada") is None
    assert await vault.seal_beside(Sealed(None, "ada"), "user.password", text="hash") is None
